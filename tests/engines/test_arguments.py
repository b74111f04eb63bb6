"""Arguments of command lines, and what is said of those that make no sense."""

import argparse

import pytest

from engines.arguments import resolution


@pytest.mark.parametrize(
    ("text", "size"), [("512", (512, 512)), ("768x512", (768, 512)), ("64X128", (64, 128)), ("0", (0, 0))]
)
def test_resolutions_are_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert resolution(text) == size


@pytest.mark.parametrize("text", ["", "x", "512x", "x512", "1x2x3", "-512", "512.0", "5e2", "512 x 512", "big", "²"])
def test_what_is_no_resolution_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        resolution(text)
    assert str(caught.value) == f"{text!r} is no resolution; write 512, or 768x512 for height x width"
