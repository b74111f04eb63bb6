"""The fake runner is a deterministic stand-in whose rows never influence each other; `open_runner` chooses."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.catalog import Widths, components_of
from engines.component import Component
from engines.errors import ArtefactError, FeedError, ProviderError
from engines.providers import DEFAULTS
from engines.runner import FAKE, FakeRunner, available, chosen_provider, open_runner

WIDTHS = Widths(context_length=77, context_width=16, latent_channels=4, unet_channels=4, downscale=8)
COMPONENTS = {
    name: Component(name, f"{name}.onnx", inputs, outputs)
    for name, (inputs, outputs) in components_of("sd1", "text_to_image", WIDTHS).items()
}
UNET = COMPONENTS["unet"]
Feeds = dict[str, npt.NDArray[Any]]


def unet_feeds(rows: int, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((rows, 4, 8, 16)).astype(np.float32),
        "timestep": (rng.random(rows) * 999).astype(np.float32),
        "encoder_hidden_states": rng.standard_normal((rows, 77, 16)).astype(np.float32),
    }


def taken(feeds: Feeds, chosen: list[int]) -> Feeds:
    return {name: array[chosen] for name, array in feeds.items()}


@pytest.mark.parametrize(
    ("name", "feed", "output", "shape"),
    [
        ("text_encoder", np.ones((3, 77), np.int32), "last_hidden_state", (3, 77, 16)),
        ("vae_encoder", np.ones((2, 3, 64, 128), np.float32), "moments", (2, 8, 8, 16)),
        ("vae_decoder", np.ones((2, 4, 8, 16), np.float32), "image", (2, 3, 64, 128)),
    ],
)
def test_outputs_have_the_shapes_and_types_of_the_component(
    name: str, feed: npt.NDArray[Any], output: str, shape: tuple[int, ...]
) -> None:
    component = COMPONENTS[name]
    skips = {spec.name: np.zeros(len(feed), np.int32) for spec in component.inputs[1:]}
    outputs = FakeRunner(component).infer({component.inputs[0].name: feed, **skips})
    assert list(outputs) == [output]
    assert (outputs[output].shape, outputs[output].dtype.name) == (shape, "float32")
    assert np.isfinite(outputs[output]).all()


def test_a_denoiser_gives_the_shape_of_the_sample() -> None:
    out = FakeRunner(UNET).infer(unet_feeds(3))["out_sample"]
    assert (out.shape, out.dtype.name) == ((3, 4, 8, 16), "float32")


def test_the_same_feeds_give_the_same_outputs() -> None:
    first, second = (FakeRunner(UNET).infer(unet_feeds(2))["out_sample"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["sample", "timestep", "encoder_hidden_states"])
def test_a_row_depends_on_each_of_its_inputs_and_on_no_other_row(name: str) -> None:
    runner, feeds = FakeRunner(UNET), unet_feeds(3)
    before = runner.infer(feeds)["out_sample"]
    feeds[name] = feeds[name].copy()
    feeds[name][1] += 0.25
    after = runner.infer(feeds)["out_sample"]
    assert [bool((before[row] == after[row]).all()) for row in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "changed"),
    [("text_encoder", "input_ids"), ("text_encoder", "clip_skip"), ("vae_encoder", "image"), ("vae_decoder", "latent")],
)
def test_outputs_of_another_shape_depend_on_the_row_too(name: str, changed: str) -> None:
    component = COMPONENTS[name]
    sizes = {"rows": 2, "height": 8, "width": 8, "8*height": 64, "8*width": 64}
    feeds = {s.name: np.zeros([int(sizes.get(str(d), d)) for d in s.shape], s.dtype) for s in component.inputs}
    feeds[changed][1] += 1
    (output,) = FakeRunner(component).infer(feeds).values()
    assert (output[0] != output[1]).any()


def test_a_row_is_the_same_alone_and_among_others() -> None:
    runner, feeds = FakeRunner(UNET), unet_feeds(7)
    together = runner.infer(feeds)["out_sample"]
    for rows in ([3], [6, 0], [5, 4, 3, 2]):
        np.testing.assert_array_equal(runner.infer(taken(feeds, rows))["out_sample"], together[rows])


def test_latency_depends_on_the_rows_of_the_call() -> None:
    waited: list[float] = []
    runner = FakeRunner(UNET, seconds=lambda rows: 0.5 * rows, sleep=waited.append)
    runner.infer(unet_feeds(2))
    runner.infer(unet_feeds(5))
    assert waited == [1.0, 2.5]
    assert runner.calls == [2, 5]


def test_nothing_waits_by_default() -> None:
    waited: list[float] = []
    FakeRunner(UNET, sleep=waited.append).infer(unet_feeds(1))
    assert waited == []


def test_wrong_feeds_are_refused_before_anything_waits() -> None:
    waited: list[float] = []
    runner = FakeRunner(UNET, seconds=lambda rows: 1.0, sleep=waited.append)
    with pytest.raises(FeedError, match="unet was fed"):
        runner.infer({"sample": np.zeros((1, 4, 8, 8), np.float32)})
    assert (waited, runner.calls) == ([], [])


def test_open_runner_gives_the_fake_without_any_file(tmp_path: Path) -> None:
    runner = open_runner(UNET, tmp_path, provider=FAKE)
    assert isinstance(runner, FakeRunner)
    assert (runner.provider, runner.component) == ("fake", UNET)


def test_open_runner_looks_for_the_file_with_any_other_provider(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"unet\.onnx does not exist; run `python -m export` again"):
        open_runner(UNET, tmp_path, provider="cpu")


@pytest.mark.parametrize(
    ("openvino", "found"), [(True, ("cuda", "openvino", "cpu")), (False, ("cuda", "cpu"))], ids=["with", "without"]
)
def test_openvino_by_itself_is_one_of_the_providers(
    monkeypatch: pytest.MonkeyPatch, openvino: bool, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr("engines.ort_runner.available_providers", lambda: ("cuda", "cpu"))
    monkeypatch.setattr("engines.openvino_runner.available", lambda: openvino)
    assert available() == found


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "taken"),
    [((8, 9), "10.11.0.33", "tensorrt"), ((8, 9), None, "cuda"), (None, "10.11.0.33", "openvino")],
    ids=["all is here", "no TensorRT", "no GPU"],
)
def test_auto_takes_the_first_provider_that_can_start(
    monkeypatch: pytest.MonkeyPatch, gpu: tuple[int, int] | None, tensorrt: str | None, taken: str
) -> None:
    """What is built into ONNX Runtime says nothing about the machine."""
    monkeypatch.setattr("engines.runner.available", lambda: ("tensorrt", "cuda", "openvino", "cpu"))
    monkeypatch.setattr("engines.runner.device_capability", lambda: gpu)
    monkeypatch.setattr("engines.runner.tensorrt_version", lambda: tensorrt)
    assert chosen_provider("auto") == taken
    assert chosen_provider("tensorrt") == "tensorrt"


def test_auto_takes_the_preferred_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = []
    monkeypatch.setattr("engines.runner.device_capability", lambda: (8, 9))
    monkeypatch.setattr("engines.runner.available", lambda: ("cuda", "cpu"))
    monkeypatch.setattr("engines.ort_runner.OrtRunner", lambda *arguments: opened.append(arguments))
    open_runner(UNET, tmp_path)
    assert opened == [(UNET, tmp_path, "cuda", DEFAULTS)]


def test_a_provider_that_is_not_here_is_refused_with_the_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("engines.runner.available", lambda: ("openvino", "cpu"))
    with pytest.raises(ProviderError, match="'cuda' is not available here; choose auto or one of openvino, cpu"):
        open_runner(UNET, tmp_path, "cuda")


def test_openvino_is_opened_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engines.runner.available", lambda: ("openvino", "cpu"))
    with pytest.raises(ArtefactError, match=r"unet\.onnx does not exist"):
        open_runner(UNET, tmp_path)
