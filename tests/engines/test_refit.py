"""The map from a checkpoint's tensors to weights: what it makes of them, what it refuses, its file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.component import Precision
from engines.errors import ArtefactError, FeedError
from engines.refit import RefitMap, Target

PLAIN = Target("norm.bias", "network.norm.bias", (3,), (), (3,), "fp16")
TURNED = Target("proj.weight", "network.proj.weight", (2, 3), (1, 0), (3, 2), "fp16")
RAISED = Target("norm.bias", "island/some/network.norm.bias", (3,), (), (3, 1, 1), "fp32")
MAP = RefitMap("unet", (PLAIN, TURNED, RAISED), ("decoder.bias",))


def test_a_tensor_becomes_every_weight_that_was_made_of_it() -> None:
    weights = MAP.weights({"norm.bias": np.array([1, 2, 3], np.float32), "proj.weight": np.arange(6.0).reshape(2, 3)})
    assert {name: (array.dtype.name, array.tolist()) for name, array in weights.items()} == {
        "network.norm.bias": ("float16", [1, 2, 3]),
        "network.proj.weight": ("float16", [[0, 3], [1, 4], [2, 5]]),
        "island/some/network.norm.bias": ("float32", [[[1]], [[2]], [[3]]]),
    }
    assert all(array.flags.c_contiguous for array in weights.values())


def test_some_tensors_alone_and_those_without_a_weight() -> None:
    assert list(MAP.weights({"proj.weight": np.zeros((2, 3)), "decoder.bias": np.zeros(9)})) == ["network.proj.weight"]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_rounding_is_torchs(precision: Precision) -> None:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 100
    # Halfway between two neighbours of bf16: ties go to the even one.
    values[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0])
    target = Target("t", "network.t", (100_000,), (), (100_000,), precision)
    expected = values.to(dtype)
    bits = expected.view(torch.int16).numpy().view(np.uint16) if precision == "bf16" else expected.numpy()
    np.testing.assert_array_equal(target.convert(values.numpy()), bits)


def test_an_unknown_tensor_is_refused_with_a_likely_one() -> None:
    with pytest.raises(FeedError, match=r"unet has no tensor 'norm.bais'.*such as 'norm.bias'"):
        MAP.weights({"norm.bais": np.zeros(3)})


def test_another_shape_is_refused() -> None:
    with pytest.raises(FeedError, match=r"'norm.bias' has shape \[4\]; .* from \[3\]"):
        MAP.weights({"norm.bias": np.zeros(4)})


def test_a_file_gives_back_the_map(tmp_path: Path) -> None:
    path = tmp_path / "unet.weights.json"
    MAP.write(path)
    assert RefitMap.read(path) == MAP
    assert len(path.read_text().splitlines()) == len(MAP.targets) + 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"format": 0}', "another version"),
        ('{"format": 1, "component": "unet", "absent": [], "targets": [{"tensor": "a"}]}', "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "unet.weights.json"
    path.write_text(text)
    with pytest.raises(ArtefactError, match=message):
        RefitMap.read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist; run `python -m export` again"):
        RefitMap.read(tmp_path / "unet.weights.json")
