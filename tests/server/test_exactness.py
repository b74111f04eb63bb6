"""Same weights, same seed, same sampler: what diffusers' own pipeline draws, alone and in mixed company."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.component import PipelineSpec
from engines.runner import open_runner
from server.checkpoints import Checkpoints
from server.config import ServerConfig
from server.image import to_pixels
from server.job import Job
from server.loop import DenoiseLoop
from server.picture_files import PictureLimits
from server.pipeline import Pipeline, open_pipeline
from server.preparation import Preparation
from server.reply import Reply
from server.request import Request
from server.scheduler import Scheduler
from tests.fakes import DeafWatcher, ListSink

CHECKPOINT = Path(__file__).parent.parent.parent / "export" / "embedded" / "checkpoint"


@dataclass(frozen=True)
class Case:
    """A request, and what makes a pipeline of diffusers draw the same.

    Attributes:
        scheduler: diffusers' class.
        config: its settings beyond those of the checkpoint.
        options: of the pipeline's call.
    """

    scheduler: str
    prompt: str
    fields: dict[str, Any]
    steps: int = 6
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(
        "EulerDiscreteScheduler", "a red circle on a blue background", {"sampler": "euler", "guidance_scale": 4.0}, 20
    ),
    Case(
        "EulerDiscreteScheduler",
        "a white heart on a green background",
        {"sampler": "euler", "schedule": "karras", "guidance_scale": 3.0},
        20,
        {"use_karras_sigmas": True},
    ),
    Case(
        "EulerAncestralDiscreteScheduler",
        "a small black star at the top on a pink background",
        {"sampler": "euler_ancestral", "guidance_scale": 5.0, "negative_prompt": "a circle"},
        20,
    ),
    Case(
        "DDIMScheduler",
        "a yellow ring above a cyan cross on a red background",
        {"sampler": "ddim", "guidance_scale": 7.5},
        20,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        "an orange triangle on a white background",
        {"sampler": "dpmpp_2m", "guidance_scale": 1.0},
        20,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        "a purple square left of a green circle on a black background",
        {"sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 4.0},
        20,
        {"use_karras_sigmas": True},
    ),
    Case("HeunDiscreteScheduler", "a green star on a red background", {"sampler": "heun", "guidance_scale": 4.0}),
    Case("KDPM2DiscreteScheduler", "a blue ring on a white background", {"sampler": "dpm2", "guidance_scale": 3.0}),
    Case(
        "LMSDiscreteScheduler",
        "a black cross on a yellow background",
        {"sampler": "LMS Karras", "guidance_scale": 2.0},
        config={"use_karras_sigmas": True},
    ),
    Case("UniPCMultistepScheduler", "a pink heart on a cyan background", {"sampler": "UniPC", "guidance_scale": 4.0}),
    Case("DEISMultistepScheduler", "a red diamond on a pink background", {"sampler": "deis", "guidance_scale": 5.0}),
    Case(
        "DPMSolverMultistepScheduler",
        "a cyan circle on a black background",
        {"sampler": "DPM++ 2M SDE", "guidance_scale": 4.0},
        config={"algorithm_type": "sde-dpmsolver++"},
    ),
    Case(
        "DPMSolverSinglestepScheduler",
        "a white square on a purple background",
        {"sampler": "dpmpp_singlestep", "guidance_scale": 1.0},
    ),
    Case(
        "PNDMScheduler",
        "an orange ring below a blue star on a green background",
        {"sampler": "PLMS", "guidance_scale": 4.0},
        config={"skip_prk_steps": True},
    ),
    Case(
        "DDIMScheduler",
        "a large red star on a blue background",
        {"sampler": "ddim", "eta": 0.5, "guidance_scale": 4.0},
        options={"eta": 0.5},
    ),
    Case(
        "EulerDiscreteScheduler",
        "a yellow triangle on a black background",
        {"sampler": "euler", "guidance_scale": 7.5, "guidance_rescale": 0.7, "negative_prompt": "a red star"},
        options={"guidance_rescale": 0.7},
    ),
    Case(
        "DDIMScheduler",
        "a green heart at the bottom on an orange background",
        {"sampler": "ddim", "guidance_scale": 5.0, "clip_skip": 1, "negative_prompt": "a blue ring"},
        options={"clip_skip": 1},
    ),
)
IDS = [f"{i}-{case.fields['sampler']}" for i, case in enumerate(CASES)]


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
    # diffusers 0.42 looks for the final norm of clip_skip where transformers 4 had it; set so that it is no submodule.
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


@cache
def checkpoint_config() -> dict[str, Any]:
    """The checkpoint's own; that of the pipeline's scheduler has what the last case set."""
    text = (CHECKPOINT / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


@cache
def reference(number: int, seed: int) -> Drawn:
    """What diffusers draws."""
    import diffusers
    import torch

    case = CASES[number]
    pipeline = oracle()
    config = {**checkpoint_config(), **case.config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = getattr(diffusers, case.scheduler).from_config(config)
        latent = pipeline(
            case.prompt,
            negative_prompt=case.fields.get("negative_prompt"),
            num_inference_steps=case.steps,
            guidance_scale=case.fields["guidance_scale"],
            generator=[torch.Generator("cpu").manual_seed(seed)],
            output_type="latent",
            **case.options,
        ).images
    with torch.no_grad():
        decoded = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return Drawn(latent[0].numpy(), to_pixels(decoded.numpy())[0])


@pytest.fixture(scope="module")
def pipeline(embedded_export: Path) -> Pipeline:
    return open_pipeline(ServerConfig(model=embedded_export, provider="cpu"))


def make_job(pipeline: Pipeline, prompt: str, seed: int, **fields: Any) -> Job:
    tensors = {"prompt": prompt, "seed": seed, **fields}
    request = Request.parse({name: [value] for name, value in tensors.items()}, pipeline.limits)
    (work,), _ = Preparation(Checkpoints([pipeline]), PictureLimits()).works(request)
    reply = Reply(request, ListSink(), lambda reply: None)
    reply.jobs = (Job(request, 0, work, reply, arrival=0.0),)
    return reply.jobs[0]


def job_of(pipeline: Pipeline, number: int) -> Job:
    case = CASES[number]
    return make_job(pipeline, case.prompt, 11 + number, num_inference_steps=case.steps, **case.fields)


def draw(pipeline: Pipeline, arrivals: list[tuple[int, Job]]) -> dict[Job, npt.NDArray[np.float32]]:
    """Final latents; each job is submitted before the step of its number."""
    latents: dict[Job, npt.NDArray[np.float32]] = {}
    checkpoints = {pipeline.name: pipeline}
    loop = DenoiseLoop(
        checkpoints, Scheduler(16), lambda job, latent, when: latents.update({job: latent}), DeafWatcher()
    )
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


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_latent_equals_diffusers_when_alone(pipeline: Pipeline, number: int) -> None:
    job = job_of(pipeline, number)
    latent = draw(pipeline, [(0, job)])[job]
    expected = reference(number, 11 + number)
    assert np.abs(latent - expected.latent).max() <= 1e-3
    assert psnr(pipeline.decode(latent[None])[0], expected.image) >= 45


@pytest.mark.parametrize("option", ["eta", "guidance_rescale", "clip_skip"])
def test_an_option_shows(pipeline: Pipeline, option: str) -> None:
    """Else it would go unseen that neither side heeds it."""
    (number,) = (number for number, case in enumerate(CASES) if option in case.options)
    case = CASES[number]
    fields = {name: value for name, value in case.fields.items() if name != option}
    job = make_job(pipeline, case.prompt, 11 + number, num_inference_steps=case.steps, **fields)
    without = draw(pipeline, [(0, job)])[job]
    assert np.abs(without - reference(number, 11 + number).latent).max() > 0.05


def test_latents_equal_diffusers_when_all_samplers_share_calls(pipeline: Pipeline) -> None:
    """Joining at different steps, with other steps, samplers and guidance in every call."""
    jobs = [job_of(pipeline, number) for number in range(len(CASES))]
    filler = make_job(pipeline, "a blue star on a red background", 99, sampler="euler", num_inference_steps=9)
    latents = draw(pipeline, [(0, filler), *((i, job) for i, job in enumerate(jobs))])
    for number, job in enumerate(jobs):
        assert np.abs(latents[job] - reference(number, 11 + number).latent).max() <= 1e-3, CASES[number]


def test_epsilon_prediction_equals_diffusers(embedded_export: Path) -> None:
    """The same weights read as epsilon: no picture, but the same numbers."""
    import diffusers
    import torch

    spec = PipelineSpec.read(embedded_export)
    assert spec.prediction_type == "v_prediction"
    runners = {name: open_runner(component, embedded_export, "cpu") for name, component in spec.components.items()}
    other = Pipeline(replace(spec, prediction_type="epsilon"), embedded_export, runners)
    job = make_job(
        other, "a red circle on a blue background", 5, sampler="ddim", guidance_scale=1.0, num_inference_steps=6
    )
    latent = draw(other, [(0, job)])[job]
    reference = oracle()
    config = {**checkpoint_config(), "prediction_type": "epsilon"}
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
