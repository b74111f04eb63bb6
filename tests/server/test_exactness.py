"""Same weights, same seed, same sampler: what diffusers' own pipeline draws, alone and in mixed company."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.component import PipelineSpec
from engines.runner import open_runner
from server.config import ServerConfig
from server.image import to_pixels
from server.job import Job
from server.loop import DenoiseLoop
from server.pipeline import COMPONENTS, Pipeline, open_pipeline
from server.reply import Reply
from server.request import Request
from server.scheduler import Scheduler
from tests.fakes import ListSink

CHECKPOINT = Path(__file__).parent.parent.parent / "export" / "embedded" / "checkpoint"
STEPS = 20
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("EulerDiscreteScheduler", "a red circle on a blue background", {"sampler": "euler", "guidance_scale": 4.0}),
    (
        "EulerDiscreteScheduler",
        "a white heart on a green background",
        {"sampler": "euler", "schedule": "karras", "guidance_scale": 3.0},
    ),
    (
        "EulerAncestralDiscreteScheduler",
        "a small black star at the top on a pink background",
        {"sampler": "euler_ancestral", "guidance_scale": 5.0, "negative_prompt": "a circle"},
    ),
    (
        "DDIMScheduler",
        "a yellow ring above a cyan cross on a red background",
        {"sampler": "ddim", "guidance_scale": 7.5},
    ),
    (
        "DPMSolverMultistepScheduler",
        "an orange triangle on a white background",
        {"sampler": "dpmpp_2m", "guidance_scale": 1.0},
    ),
    (
        "DPMSolverMultistepScheduler",
        "a purple square left of a green circle on a black background",
        {"sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 4.0},
    ),
)


@dataclass
class Drawn:
    latent: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]


@cache
def oracle() -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def reference(case: int, seed: int) -> Drawn:
    """What diffusers draws."""
    import diffusers
    import torch

    kind, prompt, fields = CASES[case]
    pipeline = oracle()
    config = {**pipeline.scheduler.config, "use_karras_sigmas": fields.get("schedule") == "karras"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = getattr(diffusers, kind).from_config(config)
        latent = pipeline(
            prompt,
            negative_prompt=fields.get("negative_prompt"),
            num_inference_steps=STEPS,
            guidance_scale=fields["guidance_scale"],
            generator=[torch.Generator("cpu").manual_seed(seed)],
            output_type="latent",
        ).images
    with torch.no_grad():
        decoded = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return Drawn(latent[0].numpy(), to_pixels(decoded.numpy())[0])


@pytest.fixture(scope="module")
def pipeline(embedded_export: Path) -> Pipeline:
    return open_pipeline(ServerConfig(model=embedded_export, provider="cpu"))


def make_job(pipeline: Pipeline, prompt: str, seed: int, **fields: Any) -> Job:
    tensors = {"prompt": prompt, "seed": seed, "num_inference_steps": STEPS, **fields}
    request = Request.parse({name: [value] for name, value in tensors.items()}, pipeline.limits)
    positive, negative = pipeline.embed([request.prompt, request.negative_prompt])
    work = pipeline.work(request, 0, positive, negative if request.guided else None)
    return Job(request, 0, work, Reply(request, ListSink(), lambda reply: None), arrival=0.0)


def draw(pipeline: Pipeline, arrivals: list[tuple[int, Job]]) -> dict[Job, npt.NDArray[np.float32]]:
    """Final latents; each job is submitted before the step of its number."""
    latents: dict[Job, npt.NDArray[np.float32]] = {}
    loop = DenoiseLoop(pipeline, Scheduler(16), lambda job, latent, when: latents.update({job: latent}))
    step = 0
    while len(latents) < len(arrivals):
        loop.submit([job for at, job in arrivals if at == step])
        loop.admit()
        loop.step()
        step += 1
    loop.close()
    return latents


def psnr(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_latent_equals_diffusers_when_alone(pipeline: Pipeline, case: int) -> None:
    _, prompt, fields = CASES[case]
    job = make_job(pipeline, prompt, seed=11 + case, **fields)
    latent = draw(pipeline, [(0, job)])[job]
    expected = reference(case, 11 + case)
    assert np.abs(latent - expected.latent).max() <= 1e-3
    assert psnr(pipeline.decode(latent[None])[0], expected.image) >= 45


def test_latents_equal_diffusers_when_all_samplers_share_calls(pipeline: Pipeline) -> None:
    """Joining at different steps, with other steps, samplers and guidance in every call."""
    jobs = [make_job(pipeline, CASES[i][1], seed=11 + i, **CASES[i][2]) for i in range(len(CASES))]
    filler = make_job(pipeline, "a blue star on a red background", 99, sampler="euler", num_inference_steps=9)
    latents = draw(pipeline, [(0, filler), *((2 * i, job) for i, job in enumerate(jobs))])
    for case, job in enumerate(jobs):
        assert np.abs(latents[job] - reference(case, 11 + case).latent).max() <= 1e-3, CASES[case]


def test_epsilon_prediction_equals_diffusers(embedded_export: Path) -> None:
    """The same weights read as epsilon: no picture, but the same numbers."""
    import diffusers
    import torch

    spec = PipelineSpec.read(embedded_export)
    assert spec.prediction_type == "v_prediction"
    runners = {name: open_runner(spec.component(name), embedded_export, "cpu") for name in COMPONENTS}
    other = Pipeline(replace(spec, prediction_type="epsilon"), embedded_export, runners)
    job = make_job(
        other, "a red circle on a blue background", 5, sampler="ddim", guidance_scale=1.0, num_inference_steps=6
    )
    latent = draw(other, [(0, job)])[job]
    reference = oracle()
    config = {**reference.scheduler.config, "prediction_type": "epsilon"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.scheduler = diffusers.DDIMScheduler.from_config(config)
        expected = reference(
            "a red circle on a blue background",
            num_inference_steps=6,
            guidance_scale=1.0,
            generator=[torch.Generator("cpu").manual_seed(5)],
            output_type="latent",
        ).images[0]
    scale = float(expected.abs().max())
    assert np.abs(latent - expected.numpy()).max() <= 1e-3 * max(1.0, scale)
