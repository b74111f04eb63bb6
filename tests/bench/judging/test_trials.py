"""What the variants are asked, and that a perfect picture is judged so, and a wrong one not."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.judging.judge import Judge, Pixels
from bench.judging.scenes import Painter
from bench.judging.trials import EXTENDED, SIDE_EXTENDED, TASKS, Trial, task_cases


@cache
def trials(task: str) -> list[Trial]:
    return TASKS[task](Judge(), Painter())


def sent(trial: Trial) -> Pixels:
    """The picture that a request brings."""
    data = trial.fields["init_image"]
    assert isinstance(data, bytes)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def recoloured(case: dict[str, Any]) -> Pixels:
    """A scene of depth in what was asked for."""
    things = [
        {**thing, "colour": asked["colour"]}
        for thing, asked in zip(case["scene"]["things"], case["asked"], strict=True)
    ]
    return Painter().draw({"background": case["asked"][0]["background"], "things": things})


def test_what_a_mask_leaves_alone_is_judged_by_itself() -> None:
    trial, case = trials("inpainting")[0], task_cases("inpainting")[0]
    scene = sent(trial)
    left, top, right, bottom = case["box"]
    inside, outside = scene.copy(), scene.copy()
    inside[top:bottom, left:right] = 255 - inside[top:bottom, left:right]
    outside[:] = 255 - outside
    assert (trial.judge(inside)["rest_kept"], trial.judge(inside)["rest_psnr_db"]) == (1.0, 100.0)
    assert trial.judge(outside)["rest_kept"] == 0.0


def test_a_layout_is_judged_by_where_things_are() -> None:
    case, trial = task_cases("depth")[0], trials("depth")[0]
    perfect = trial.judge(recoloured(case))
    assert {perfect[aspect] for aspect in ("colour", "background", "layout")} == {1.0}
    assert perfect["overlap"] > 0.9
    assert trial.judge(np.roll(recoloured(case), 64, axis=1))["layout"] == 0.0


def test_an_enlarged_picture_is_judged_by_the_truth() -> None:
    case, trial = task_cases("upscaling")[0], trials("upscaling")[0]
    truth = Painter().draw(case["scene"], case["pixels"])
    small = sent(trial)
    assert tuple(4 * side for side in small.shape[:2]) == truth.shape[:2]
    bicubic = np.asarray(Image.fromarray(small).resize((case["pixels"], case["pixels"]), Image.Resampling.BICUBIC))
    assert (trial.judge(truth)["better"], trial.judge(truth)["psnr_db"]) == (1.0, 100.0)
    assert trial.judge(bicubic)["better"] == 0.0
    assert trial.judge(bicubic)["gained_db"] == pytest.approx(0.0)


def test_an_extended_picture_must_go_on_as_it_was() -> None:
    trial = trials("outpainting")[0]
    scene = sent(trial)
    whole = np.empty((EXTENDED, EXTENDED, 3), np.uint8)
    whole[:] = scene[0, 0]
    whole[SIDE_EXTENDED:-SIDE_EXTENDED, SIDE_EXTENDED:-SIDE_EXTENDED] = scene
    assert set(trial.judge(whole).values()) == {1.0}
    whole[EXTENDED // 2, EXTENDED // 2] ^= 1
    assert trial.judge(whole)["rest_kept"] == 0.0
