"""Where diffusers' image-to-image or inpainting is at fault, ours is what it would be without the fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from tests.conftest import EMBEDDED
from tests.drawing import Drawing, scene, window
from tests.pipelines import METHODS, Expected, Method, assert_same, difference, draw, oracle

PROMPT = "a black cross on a yellow background"
SIDE, STEPS, STRENGTH, SCALE, SEED = 128, 8, 0.75, 4.0, 81
PICTURE, MASK = scene(SIDE, SIDE), window(SIDE, SIDE)
LMS = Method("lms", "LMSDiscreteScheduler")
PNDM = Method("pndm", "PNDMScheduler", {"skip_prk_steps": True})


@pytest.fixture(scope="module")
def drawing(embedded_export: Path) -> Iterator[Drawing]:
    config = ServerConfig(model=embedded_export, name="base", provider="cpu", unet_threads=1)
    with Drawing(open_checkpoints(config)) as made:
        yield made


def from_picture(method: Method, **options: Any) -> Expected:
    pipeline = oracle("StableDiffusionImg2ImgPipeline", EMBEDDED, method, **options)
    image = Image.fromarray(PICTURE)
    return draw(pipeline, PROMPT, [SEED], steps=STEPS, scale=SCALE, image=image, strength=STRENGTH)


def with_as_many_derivatives_as_there_are(made: Any) -> Any:
    """LMS whose order is not that of a step far into the schedule while its history is empty."""
    step = made.step

    def grown(output: Any, timestep: Any, sample: Any, order: int = 4, **options: Any) -> Any:
        return step(output, timestep, sample, order=min(len(made.derivatives) + 1, order), **options)

    made.step = grown
    return made


def with_the_second_timestep_twice(made: Any) -> Any:
    """PNDM whose list says the second timestep that it walks twice, and not one that it has skipped."""
    lay_out = made.set_timesteps

    def laid_out(*given: Any, **options: Any) -> None:
        lay_out(*given, **options)
        walked = int(STEPS * STRENGTH)
        steps = torch.cat([made.timesteps[:1], made.timesteps[2:]])
        skipped, first, rest = steps[: STEPS - walked], steps[STEPS - walked], steps[STEPS - walked + 1 :]
        made.timesteps = torch.cat([skipped, first[None], rest[:1], rest])

    made.set_timesteps = laid_out
    return made


def with_what_is_kept_as_noisy_as_the_rest(made: Any) -> Any:
    """DPM2 whose kept part has the noise of a step's middle there, and not already that of its end."""
    add = made.add_noise

    def added(clean: Any, noise: Any, timesteps: Any) -> Any:
        if made.step_index is None or made.state_in_first_order:
            return add(clean, noise, timesteps)
        return clean + noise * made.sigmas_interpol[made.step_index]

    made.add_noise = added
    return made


def drawn_by(drawing: Drawing, sampler: str, **more: Any) -> Any:
    return drawing.one(
        prompt=PROMPT, sampler=sampler, num_inference_steps=STEPS, guidance_scale=SCALE, seed=SEED, init_image=PICTURE,
        strength=STRENGTH, height=SIDE, width=SIDE, **more,
    )  # fmt: skip


def test_lms_begins_with_the_history_that_it_has(drawing: Drawing) -> None:
    drawn = drawn_by(drawing, "lms")
    assert_same(drawn, from_picture(LMS, patch=with_as_many_derivatives_as_there_are))
    assert difference(drawn, from_picture(LMS)) > 0.05


def test_pndm_begins_at_the_step_that_the_strength_says(drawing: Drawing) -> None:
    drawn = drawn_by(drawing, "pndm")
    assert_same(drawn, from_picture(PNDM, patch=with_the_second_timestep_twice))
    assert len(drawn.timesteps[0]) == int(STEPS * STRENGTH) + 1
    theirs = from_picture(PNDM)
    assert theirs.timesteps[0] > drawn.timesteps[0][0]


def test_what_dpm2_keeps_is_as_noisy_as_the_rest(drawing: Drawing) -> None:
    """Of a picture that is inpainted without a mask channel; diffusers' ancestral one is right."""

    def inpainted(**options: Any) -> Expected:
        pipeline = oracle("StableDiffusionInpaintPipeline", EMBEDDED, METHODS["dpm2"], **options)
        pictures = {"image": Image.fromarray(PICTURE), "mask_image": Image.fromarray(MASK)}
        sizes = {"height": SIDE, "width": SIDE}
        return draw(pipeline, PROMPT, [SEED], steps=STEPS, scale=SCALE, strength=STRENGTH, **pictures, **sizes)

    drawn = drawn_by(drawing, "dpm2", mask_image=MASK, mask_blur=0, keep_unmasked=0)
    assert_same(drawn, inpainted(patch=with_what_is_kept_as_noisy_as_the_rest))
    assert difference(drawn, inpainted()) > 0.01
