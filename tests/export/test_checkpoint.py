"""Checkpoints on disk: what is read from them, what is said when they are incomplete, damaged or of another kind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from engines.catalog import Widths
from engines.component import Precision
from export.checkpoint import Checkpoint
from export.errors import CheckpointError, ExportError, ParityError

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(str(folder))


def never_download(*arguments: Any, **options: Any) -> str:
    raise AssertionError("nothing may be downloaded for this")


def test_properties_are_those_of_the_configuration(tiny_checkpoint: Path) -> None:
    checkpoint = opened(tiny_checkpoint)
    assert checkpoint.name == f"{tiny_checkpoint.parent.name}/checkpoint"
    assert (checkpoint.family, checkpoint.downscale, checkpoint.native_resolution) == ("sd1", 8, 64)
    assert checkpoint.scaling_factor == 0.18215
    assert checkpoint.widths == Widths(77, 32, 4, 4, 8, stage_channels=(32, 32), stage_layers=1)
    assert checkpoint.schedule["_class_name"] == "DDIMScheduler"
    assert checkpoint.schedule["prediction_type"] == "epsilon"
    assert checkpoint.pad_token() == "<|endoftext|>"


def test_a_checkpoint_is_named_by_its_folder_even_as_a_dot(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint)
    assert Checkpoint.open(".").name == opened(tiny_checkpoint).name


def test_an_openclip_text_encoder_makes_it_stable_diffusion_2(folder: Path) -> None:
    edit(folder / "text_encoder/config.json", hidden_act="gelu")
    assert opened(folder).family == "sd2"


def test_what_old_configurations_leave_out_is_filled_in(folder: Path) -> None:
    edit(folder / "vae/config.json", scaling_factor=None)
    edit(folder / "scheduler/scheduler_config.json", prediction_type=None)
    assert opened(folder).scaling_factor == 0.18215
    assert opened(folder).schedule["prediction_type"] == "epsilon"


def test_the_configured_values_win_over_the_defaults(folder: Path) -> None:
    edit(folder / "vae/config.json", scaling_factor=0.5)
    edit(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert opened(folder).scaling_factor == 0.5
    assert opened(folder).schedule["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("pad", "read"), [("!", "!"), ({"content": "!", "lstrip": False}, "!"), (None, "<|endoftext|>")]
)
def test_the_pad_token_is_a_word_an_object_or_the_end(folder: Path, pad: Any, read: str) -> None:
    edit(folder / "tokenizer/special_tokens_map.json", pad_token=pad)
    edit(folder / "tokenizer/tokenizer_config.json", pad_token=None)
    assert opened(folder).pad_token() == read


def test_the_pad_token_is_looked_for_in_both_files(folder: Path) -> None:
    (folder / "tokenizer/special_tokens_map.json").unlink()
    edit(folder / "tokenizer/tokenizer_config.json", pad_token="!")
    assert opened(folder).pad_token() == "!"


def test_networks_are_loaded_in_fp32_for_evaluation(tiny_checkpoint: Path) -> None:
    checkpoint = opened(tiny_checkpoint)
    assert {t.dtype for t in load_file(tiny_checkpoint / UNET_WEIGHTS).values()} == {torch.float16}
    for network in map(checkpoint.network, ("text_encoder", "unet", "vae")):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert not network.training


def test_networks_hold_the_stored_weights(tiny_checkpoint: Path) -> None:
    stored = load_file(tiny_checkpoint / UNET_WEIGHTS)
    loaded = opened(tiny_checkpoint).network("unet").state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], value.float()) for name, value in stored.items())


def rename(path: Path, renamed: Callable[[str], str]) -> None:
    save_file({renamed(name): value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


def test_text_encoders_with_the_names_of_published_checkpoints_load(tiny_checkpoint: Path, folder: Path) -> None:
    rename(folder / TEXT_WEIGHTS, lambda name: "text_model." + name.removeprefix("text_model."))
    new, old = (opened(place).network("text_encoder").state_dict() for place in (tiny_checkpoint, folder))
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_vaes_with_the_names_of_published_checkpoints_load(tiny_checkpoint: Path, folder: Path) -> None:
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        return name

    rename(folder / VAE_WEIGHTS, renamed)
    new, old = (opened(place).network("vae").state_dict() for place in (tiny_checkpoint, folder))
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_the_tokenizer_gives_the_ids_of_transformers(tiny_checkpoint: Path) -> None:
    text = "a large red circle on the left, blue background"
    ours = opened(tiny_checkpoint).tokenizer().encode(text, add_special_tokens=False).ids
    theirs = CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")(text)["input_ids"]
    assert ours == theirs[1:-1]


def test_the_fingerprint_does_not_depend_on_the_place(tiny_checkpoint: Path, folder: Path) -> None:
    assert opened(folder).fingerprint == opened(tiny_checkpoint).fingerprint


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        UNET_WEIGHTS,
        TEXT_WEIGHTS,
        "vae/config.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
    ],
)
def test_the_fingerprint_changes_with_any_byte(tiny_checkpoint: Path, folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    assert Checkpoint(folder, "damaged").fingerprint != opened(tiny_checkpoint).fingerprint


def test_the_fingerprint_changes_with_a_files_name(tiny_checkpoint: Path, folder: Path) -> None:
    (folder / TEXT_WEIGHTS).rename(folder / "text_encoder/model.fp16.safetensors")
    assert opened(folder).fingerprint != opened(tiny_checkpoint).fingerprint


def test_the_fingerprint_ignores_what_is_no_weight_or_configuration(tiny_checkpoint: Path, folder: Path) -> None:
    (folder / "README.md").write_text("# Card\n")
    (folder / "unet" / ".DS_Store").write_bytes(b"\0")
    assert opened(folder).fingerprint == opened(tiny_checkpoint).fingerprint


@pytest.mark.parametrize("location", ["nowhere", "./nowhere", "/nowhere/at/all", "one/two/three", "../checkpoints"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", never_download)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(location)
    assert str(caught.value) == (
        f"{location} does not exist; give a diffusers folder, a .safetensors file, or a hub id such as owner/name"
    )


def test_a_hub_id_is_downloaded_without_what_is_not_needed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    checkpoint = Checkpoint.open("owner/tiny")
    assert (checkpoint.folder, checkpoint.name) == (tiny_checkpoint, "owner/tiny")
    ((repository, patterns),) = asked
    assert repository == "owner/tiny"
    assert [p for p in patterns if p.endswith(".safetensors")] == [
        "text_encoder/*.safetensors",
        "text_encoder_2/*.safetensors",
        "depth_estimator/*.safetensors",
        "unet/*.safetensors",
        "vae/*.safetensors",
        "*model.safetensors",
    ]


def test_a_failed_download_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repository: str, **options: Any) -> str:
        raise ConnectionError("the hub is away\nTraceback follows\n")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open("owner/tiny")
    assert str(caught.value) == "owner/tiny is no local folder and cannot be downloaded (the hub is away)"


def test_a_folder_without_an_index_is_refused(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_index\.json does not exist; give a complete diffusers folder"):
        opened(folder)


@pytest.mark.parametrize("content", [b"", b'{"_class_name":', b"\xff\xfe"], ids=["empty", "cut", "binary"])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json"])
def test_broken_json_is_refused(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file} cannot be read \(.+\); download or save the checkpoint again"):
        opened(folder)


def test_json_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"model_index\.json holds no JSON object"):
        opened(folder)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(
        CheckpointError,
        match=rf" has no {part}; (a StableDiffusionPipeline has tokenizer, .*scheduler|download or save)",
    ):
        opened(folder)


def test_parts_that_the_index_does_not_list_are_missing(folder: Path) -> None:
    edit(folder / "model_index.json", vae=None, text_encoder=None)
    with pytest.raises(CheckpointError, match=" has no text_encoder, vae; "):
        opened(folder)


@pytest.mark.parametrize(("channels", "task"), [(9, "inpainting"), (4, "text_to_image")])
def test_the_channels_of_the_unet_tell_the_task(folder: Path, channels: int, task: str) -> None:
    edit(folder / "unet/config.json", in_channels=channels)
    assert (opened(folder).task, opened(folder).widths.unet_channels) == (task, channels)


def test_a_unet_for_another_task_is_refused(folder: Path) -> None:
    """Editing by instruction takes 8 channels."""
    edit(folder / "unet/config.json", in_channels=8)
    edit(folder / "model_index.json", _class_name="StableDiffusionOtherPipeline")
    with pytest.raises(
        CheckpointError, match="is a StableDiffusionOtherPipeline whose UNet takes 8 channels; export takes"
    ):
        opened(folder)


def test_a_unet_for_depth_needs_an_estimator(folder: Path) -> None:
    edit(folder / "unet/config.json", in_channels=5)
    with pytest.raises(CheckpointError, match=" has no depth_estimator; "):
        opened(folder)


@pytest.mark.parametrize("kind", ["FluxPipeline", "KandinskyPipeline", None])
def test_another_family_is_refused(folder: Path, kind: str | None) -> None:
    edit(folder / "model_index.json", _class_name=kind)
    with pytest.raises(CheckpointError, match=rf"is a {kind}; export takes Stable Diffusion 1\.x, 2\.x, XL"):
        opened(folder)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("unet/config.json", "sample_size"),
        ("unet/config.json", "cross_attention_dim"),
        ("vae/config.json", "block_out_channels"),
    ],
)
def test_a_configuration_that_lacks_a_size_is_refused(folder: Path, file: str, key: str) -> None:
    edit(folder / file, **{key: None})
    with pytest.raises(CheckpointError, match=rf"{file} has no {key}"):
        opened(folder)


def cut_weights(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def drop_a_tensor(path: Path) -> None:
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})


def reshape_a_tensor(path: Path) -> None:
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({**weights, name: torch.zeros(3)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        cut_weights,
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        drop_a_tensor,
        reshape_a_tensor,
    ],
    ids=["missing", "cut", "git-lfs pointer", "a tensor missing", "another shape"],
)
@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_damaged_weights_are_refused_when_loaded(folder: Path, part: str, damage: Callable[[Path], Any]) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    damage(path)
    checkpoint = opened(folder)
    told = rf"{part} (cannot be loaded \([^\n]+\)|holds no weights, in [^\n]+); download [^\n]+ again$"
    with pytest.raises(CheckpointError, match=told):
        checkpoint.network(part)


@pytest.mark.parametrize(("value", "precision"), [(float("nan"), "fp32"), (float("inf"), "fp32"), (7e4, "fp16")])
def test_values_that_are_not_finite_are_refused(folder: Path, value: float, precision: Precision) -> None:
    weights = {name: tensor.float() for name, tensor in load_file(folder / UNET_WEIGHTS).items()}
    weights["conv_in.weight"][0, 0, 0, 0] = value
    save_file(weights, folder / UNET_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"unet holds values that are not finite in conv_in\.weight as {precision}; download it"
    ):
        opened(folder).network("unet", precision)


def test_files_that_are_only_there_in_fp16_are_found(folder: Path) -> None:
    (folder / UNET_WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert opened(folder).network("unet", "fp16").dtype == torch.float16


@pytest.mark.parametrize("damage", ["", "{}", '{"a": 0, "b": 1}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, damage: str) -> None:
    (folder / "tokenizer/vocab.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"tokenizer (cannot be loaded \([^\n]+\); download it again|has no)"):
        opened(folder).tokenizer()


@pytest.mark.parametrize("error", [CheckpointError, ParityError])
def test_all_errors_are_export_errors(error: type[Exception]) -> None:
    assert issubclass(error, ExportError)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sample_size", None), ("sample_size", "64"), ("cross_attention_dim", [32, 32]), ("block_out_channels", [])],
)
def test_sizes_that_make_no_sense_are_refused(folder: Path, key: str, value: Any) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=rf"unet/config\.json has {key} .*, which no supported checkpoint has"):
        opened(folder)


def test_a_controlnet_without_its_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel", "in_channels": 4}))
    with pytest.raises(CheckpointError, match=r"config\.json has no cross_attention_dim, block_out_channels, cond"):
        Checkpoint.open(str(tmp_path))
