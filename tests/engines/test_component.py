"""Tensors and components bind feeds; `pipeline.json` is read back as it was written, or refused with a remedy."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.catalog import Widths, components_of
from engines.component import (
    FORMAT,
    PIPELINE_FILE,
    Component,
    PipelineSpec,
    Projection,
    TensorSpec,
    file_sha256,
    resolve,
)
from engines.errors import ArtefactError, EngineError, FeedError, ProviderError

IMAGE = TensorSpec("image", "float32", ("rows", 3, "8*height", "8*width"))
LATENT = TensorSpec("latent", "float32", ("rows", 4, "height", "width"))
CONTROLLED = Component("controlled", "controlled.onnx", (LATENT, IMAGE), (LATENT,))


def pipeline_spec() -> PipelineSpec:
    sides = components_of(
        "sd1",
        "text_to_image",
        Widths(context_length=77, context_width=32, latent_channels=4, unet_channels=4, downscale=8),
    )
    components = {
        name: Component(name, f"{name}.onnx", inputs, outputs, "fp16", "ab12", {"max_abs": 1e-6, "limit": 1e-4})
        for name, (inputs, outputs) in sides.items()
    }
    return PipelineSpec(
        checkpoint="tiny",
        family="sd2",
        task="text_to_image",
        fingerprint="f" * 64,
        key="k" * 64,
        prediction_type="v_prediction",
        scaling_factor=0.13025,
        latent_channels=4,
        downscale=8,
        schedule={"_class_name": "DDIMScheduler", "beta_start": 0.00085, "trained_betas": None},
        resolutions=((512, 512), (768, 512)),
        tokenizer="tokenizer",
        tokenizer_sha256=hashlib.sha256().hexdigest(),
        context_length=77,
        text_layers=12,
        components=components,
        low_res_schedule={"_class_name": "DDPMScheduler", "beta_end": 0.02},
        max_noise_level=350,
        preview=Projection(
            ((0.1, -0.2, 0.3), (1.5, 0.0, -2.0), (0.25, 0.5, 0.75), (4.0, 5.0, 6.0)), (0.0, 1.0, -1.0), 0.9
        ),
    )


def test_parts_of_a_symbol_are_bound_and_checked() -> None:
    residual = TensorSpec("residual", "float32", ("rows", 8, "height/4", "width/4"))
    component = Component("controlled", "controlled.onnx", (LATENT, residual), (LATENT,))
    feeds = {"latent": np.zeros((2, 4, 16, 24), np.float32), "residual": np.zeros((2, 8, 4, 6), np.float32)}
    assert component.bind(feeds) == {"rows": 2, "height": 16, "width": 24}
    assert Component("r", "r.onnx", (residual,), (LATENT,)).bind({"residual": feeds["residual"]})["width"] == 24
    with pytest.raises(FeedError, match="its dimension 'height/4' must be 4 here"):
        component.bind({**feeds, "residual": np.zeros((2, 8, 5, 6), np.float32)})


def test_resolve_takes_numbers_symbols_multiples_and_parts() -> None:
    assert [resolve(dim, {"height": 24}) for dim in (7, "height", "8*height", "height/4")] == [7, 24, 192, 6]


def test_resolve_raises_on_a_symbol_without_size() -> None:
    with pytest.raises(KeyError, match="width"):
        resolve("8*width", {"height": 24})


def test_bind_notes_sizes_of_symbols() -> None:
    bound: dict[str, int] = {}
    LATENT.bind(np.zeros((5, 4, 16, 24), np.float32), bound)
    assert bound == {"rows": 5, "height": 16, "width": 24}


def test_bind_divides_multiples() -> None:
    bound: dict[str, int] = {}
    IMAGE.bind(np.zeros((1, 3, 128, 192), np.float32), bound)
    assert bound == {"rows": 1, "height": 16, "width": 24}


def test_bind_refuses_a_size_that_is_no_multiple() -> None:
    with pytest.raises(FeedError, match=r"'image' has shape \[1, 3, 65, 64\].*'8\*height' must be 64 here"):
        IMAGE.bind(np.zeros((1, 3, 65, 64), np.float32), {})


def test_bind_refuses_another_fixed_size() -> None:
    with pytest.raises(FeedError, match="its dimension 4 must be 4 here"):
        LATENT.bind(np.zeros((1, 9, 8, 8), np.float32), {})


@pytest.mark.parametrize("array", [np.zeros((1, 4, 8, 8)), np.zeros((4, 8, 8), np.float32)], ids=["dtype", "rank"])
def test_bind_refuses_another_dtype_or_rank(array: Any) -> None:
    with pytest.raises(FeedError) as caught:
        LATENT.bind(array, {})
    assert str(caught.value) == (
        f"input 'latent' is {array.dtype}{list(array.shape)}; feed float32['rows', 4, 'height', 'width'] instead"
    )


def test_component_binds_all_inputs_to_the_same_sizes() -> None:
    feeds = {"latent": np.zeros((2, 4, 8, 16), np.float32), "image": np.zeros((2, 3, 64, 128), np.float32)}
    assert CONTROLLED.bind(feeds) == {"rows": 2, "height": 8, "width": 16}


@pytest.mark.parametrize(
    ("shape", "said"),
    [((3, 3, 64, 128), "'rows' must be 2"), ((2, 3, 72, 128), r"'8\*height' must be 64")],
    ids=["rows", "height"],
)
def test_component_refuses_inputs_that_contradict_each_other(shape: tuple[int, ...], said: str) -> None:
    feeds = {"latent": np.zeros((2, 4, 8, 16), np.float32), "image": np.zeros(shape, np.float32)}
    with pytest.raises(FeedError, match=f"'image' .* {said} here"):
        CONTROLLED.bind(feeds)


@pytest.mark.parametrize("names", [["latent"], ["latent", "image", "mask"], []], ids=["missing", "unknown", "none"])
def test_component_refuses_other_names(names: list[str]) -> None:
    with pytest.raises(FeedError) as caught:
        CONTROLLED.bind({name: np.zeros((1, 4, 8, 8), np.float32) for name in names})
    assert str(caught.value) == f"controlled was fed {sorted(names)}; feed exactly ['image', 'latent']"


def test_pipeline_spec_reads_what_it_wrote(tmp_path: Path) -> None:
    spec = pipeline_spec()
    spec.write(tmp_path)
    assert PipelineSpec.read(tmp_path) == spec
    assert [path.name for path in tmp_path.iterdir()] == [PIPELINE_FILE]


def test_a_pipeline_made_by_hand_has_a_grey_preview(tmp_path: Path) -> None:
    fields = {name: getattr(pipeline_spec(), name) for name in PipelineSpec.__slots__ if name != "preview"}
    spec = PipelineSpec(**fields)
    spec.write(tmp_path)
    assert PipelineSpec.read(tmp_path) == spec
    assert np.array_equal(spec.preview.matrix, np.zeros((spec.latent_channels, 3)))


def test_pipeline_spec_overwrites_an_older_one(tmp_path: Path) -> None:
    pipeline_spec().write(tmp_path)
    newer = replace(pipeline_spec(), resolutions=((640, 640),))
    newer.write(tmp_path)
    assert PipelineSpec.read(tmp_path) == newer


def test_read_names_the_file_and_the_remedy_when_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(ArtefactError) as caught:
            PipelineSpec.read(folder)
        assert str(caught.value) == (
            f"{folder / PIPELINE_FILE} does not exist; run `python -m export CHECKPOINT --out DIR` and give that DIR"
        )


@pytest.mark.parametrize("version", [0, 1, 2, 4, "5", None])
def test_read_refuses_another_format(tmp_path: Path, version: Any) -> None:
    pipeline_spec().write(tmp_path)
    content = json.loads((tmp_path / PIPELINE_FILE).read_text())
    (tmp_path / PIPELINE_FILE).write_text(json.dumps({**content, "format": version}))
    with pytest.raises(ArtefactError, match="was written by another version; run `python -m export"):
        PipelineSpec.read(tmp_path)


def without(*path: str) -> bytes:
    """A written `pipeline.json` that lacks one key."""
    content = json.loads(json.dumps({"format": FORMAT, **as_json()}))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(content).encode()


def with_preview(**changes: Any) -> bytes:
    """A written `pipeline.json` whose preview has other values."""
    content = json.loads(json.dumps({"format": FORMAT, **as_json()}))
    content["preview"] |= changes
    return json.dumps(content).encode()


def as_json() -> dict[str, Any]:
    spec = pipeline_spec()
    plain = {name: getattr(spec, name) for name in PipelineSpec.__slots__}
    sides = {n: {"name": n, "file": c.file, "inputs": [], "outputs": []} for n, c in spec.components.items()}
    return {**plain, "components": sides, "preview": asdict(spec.preview)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": %d,' % FORMAT,
        b"[1, 2]",
        b"null",
        b"\xff\xfe\x00",
        b"{}",
        b'{"format": %d}' % FORMAT,
        without("family"),
        without("components"),
        without("components", "unet", "file"),
        without("components", "unet", "inputs"),
        without("preview"),
        without("preview", "matrix"),
        without("preview", "r_squared"),
        with_preview(bias=[0.0, 0.0]),
        with_preview(bias="red"),
        with_preview(matrix=[[0.0, 0.0, 0.0]] * 3),
        with_preview(matrix=[[0.0, 0.0]] * 4),
        with_preview(matrix=None),
        json.dumps({"format": FORMAT, **as_json(), "resolutions": [512]}).encode(),
        json.dumps({"format": FORMAT, **as_json(), "speed": 3}).encode(),
    ],
)
def test_read_refuses_damage_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PIPELINE_FILE).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"pipeline\.json is damaged \(.+\); run `python -m export"):
        PipelineSpec.read(tmp_path)


def written(folder: Path) -> PipelineSpec:
    """A pipeline whose files are there, each holding its component's name."""
    spec = pipeline_spec()
    for component in spec.components.values():
        (folder / component.file).write_text(component.name)
    hashed = {name: replace(c, sha256=file_sha256(folder / c.file)) for name, c in spec.components.items()}
    return replace(spec, components=hashed)


def test_verify_passes_on_the_files_that_were_exported(tmp_path: Path) -> None:
    spec = written(tmp_path)
    spec.verify(tmp_path)
    assert {path.name for path in tmp_path.glob("*.onnx")} == {c.file for c in spec.components.values()}


@pytest.mark.parametrize("content", ["", "Unet"])
def test_verify_names_a_file_that_has_changed(tmp_path: Path, content: str) -> None:
    spec = written(tmp_path)
    (tmp_path / "unet.onnx").write_text(content)
    with pytest.raises(ArtefactError, match=r"unet\.onnx is damaged.*; run `python -m export` again$"):
        spec.verify(tmp_path)


def test_verify_names_a_file_that_is_missing(tmp_path: Path) -> None:
    spec = written(tmp_path)
    (tmp_path / "vae_decoder.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"vae_decoder\.onnx does not exist; run `python -m export` again$"):
        spec.verify(tmp_path)


def test_component_of_a_pipeline_is_named_or_refused() -> None:
    spec = pipeline_spec()
    assert spec.component("unet").file == "unet.onnx"
    with pytest.raises(
        ArtefactError, match=r"no component 'controlnet', only \['text_encoder', 'unet', .*export again"
    ):
        spec.component("controlnet")


def test_sha256_covers_external_data(tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"graph")
    alone = file_sha256(path)
    (tmp_path / "unet.onnx.data").write_bytes(b"weights")
    together = file_sha256(path)
    (tmp_path / "unet.onnx.data").write_bytes(b"Weights")
    assert len({alone, together, file_sha256(path)}) == 3


@pytest.mark.parametrize("error", [ArtefactError, FeedError, ProviderError])
def test_all_errors_are_engine_errors(error: type[Exception]) -> None:
    assert issubclass(error, EngineError)
