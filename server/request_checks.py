"""What a request must fulfil beyond each field's own bounds: what fits together, and what the checkpoint can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import InvalidRequest
from server.fields import MAX_SEED
from server.sampler_names import SAMPLER_BY_NAME, SAMPLERS
from server.task_checks import check_enlarged

if TYPE_CHECKING:
    from server.request import Limits, Request

# Characters of a client's or request's name.
MAX_NAME = 256
# A prompt that alternates is read anew for every step.
MAX_SCHEDULED = 2_000_000


def check(request: Request, limits: Limits) -> None:
    """Check a request whose fields are each in their bounds.

    Raises:
        InvalidRequest: names the field, what came, what is allowed and what to do.
    """
    _check_amounts(request, limits)
    _check_seeds(request)
    _check_sampler(request)
    _check_levels(request, limits)
    _check_prompts(request)
    _check_names(request)
    _check_passes(request, limits)
    if request.guidance_start >= request.guidance_end:
        raise InvalidRequest(
            f"guidance_start is {request.guidance_start} and guidance_end {request.guidance_end}; the start must be "
            "less than the end: for no guidance at all, send guidance_scale 1"
        )


def _check_amounts(request: Request, limits: Limits) -> None:
    if request.num_inference_steps > limits.max_steps:
        raise InvalidRequest(
            f"num_inference_steps is {request.num_inference_steps}; this checkpoint's schedule allows 1 to "
            f"{limits.max_steps}: send fewer"
        )
    if request.sampler in ("lcm", "tcd") and not request.timesteps and request.num_inference_steps > limits.distilled:
        raise InvalidRequest(
            f"num_inference_steps is {request.num_inference_steps}; {request.sampler} takes 1 to {limits.distilled}, "
            "the steps that this checkpoint was distilled on: send fewer"
        )
    if request.num_images > limits.max_images:
        raise InvalidRequest(
            f"num_images is {request.num_images}; this server draws at most {limits.max_images} per request: "
            "send more requests, they share batches all the same"
        )
    if request.clip_skip >= limits.layers:
        raise InvalidRequest(
            f"clip_skip is {request.clip_skip}; this checkpoint's text encoder has {limits.layers} layers: "
            f"send 0 to {limits.layers - 1}"
        )


def _check_seeds(request: Request) -> None:
    name, seed = ("subseed", request.subseed) if request.subseed_strength else ("seed", request.seed)
    if seed + request.num_images - 1 > MAX_SEED:
        raise InvalidRequest(
            f"{name} is {seed}; {name} + num_images - 1 must not exceed {MAX_SEED}: send a smaller {name}"
        )


def _check_sampler(request: Request) -> None:
    sampler = SAMPLER_BY_NAME[request.sampler]
    for option, value in (("eta", request.eta), ("solver_order", request.solver_order)):
        if value is not None and option not in sampler.options:
            heeding = ", ".join(other.name for other in SAMPLERS if option in other.options)
            raise InvalidRequest(
                f"{option} is {value}, but {sampler.name} has none; leave it out, or send one of {heeding}"
            )
    if request.solver_order is not None and request.solver_order > sampler.max_order:
        raise InvalidRequest(
            f"solver_order is {request.solver_order}; {sampler.name} takes 1 to {sampler.max_order}: send one of these"
        )
    if not sampler.schedules and (request.schedule not in (None, "normal") or request.sigmas):
        came = f"schedule is {request.schedule}" if request.schedule else "sigmas are listed"
        raise InvalidRequest(
            f"{came}, but {sampler.name} walks on trained timesteps only; send another sampler, or leave it out"
        )


def _check_levels(request: Request, limits: Limits) -> None:
    if request.sigmas and request.timesteps:
        raise InvalidRequest("both sigmas and timesteps are listed; send one of them")
    if (request.sigmas or request.timesteps) and request.schedule is not None:
        raise InvalidRequest(
            f"schedule is {request.schedule}, but levels are listed as well; leave the schedule or the list out"
        )
    if request.rho is not None and request.schedule not in (None, "karras", "polyexponential"):
        raise InvalidRequest(f"rho is {request.rho}, but schedule {request.schedule} has none; leave it out")
    if request.timesteps and request.sampler == "dpm_fast":
        raise InvalidRequest("timesteps are listed, but dpm_fast chooses its own levels; leave them out")
    if request.sigmas and request.sigmas[-1] <= 0:
        raise InvalidRequest("the last of sigmas is 0; the final level is added by itself: leave it out")
    if request.timesteps and request.timesteps[0] > limits.timesteps - 1:
        raise InvalidRequest(
            f"timesteps begin at {request.timesteps[0]}; this checkpoint was trained on 0 to {limits.timesteps - 1}"
        )


def _check_prompts(request: Request) -> None:
    longest = max(len(request.prompt), len(request.negative_prompt))
    if request.prompt_syntax.startswith("a1111") and longest * request.num_inference_steps > MAX_SCHEDULED:
        raise InvalidRequest(
            f"the longest prompt has {longest} characters and num_inference_steps is {request.num_inference_steps}; "
            f"in A1111's syntax their product must not exceed {MAX_SCHEDULED}: send a shorter prompt or fewer steps"
        )


def _check_passes(request: Request, limits: Limits) -> None:
    size = request.hires_height, request.hires_width
    if request.hires_height and size not in limits.resolutions:
        sizes = ", ".join(f"{h}x{w}" for h, w in limits.resolutions)
        raise InvalidRequest(
            f"hires_height x hires_width is {size[0]}x{size[1]}; this server draws {sizes}: send one of these"
        )
    for name in ("hires_steps", "upscale_steps"):
        if getattr(request, name) and (request.sigmas or request.timesteps):
            raise InvalidRequest(
                f"{name} is {getattr(request, name)}, but levels are listed, which are as many steps; leave it out"
            )
        if getattr(request, name) > limits.max_steps:
            raise InvalidRequest(f"{name} is {getattr(request, name)}; send at most {limits.max_steps}")
    if request.upscale_model:
        height, width = size if request.hires_height else (request.height, request.width)
        check_enlarged(height, width, request.upscale_model, limits)


def _check_names(request: Request) -> None:
    for name, value in (("client_id", request.client_id), ("request_id", request.request_id)):
        if len(value) > MAX_NAME:
            raise InvalidRequest(f"{name} has {len(value)} characters; send at most {MAX_NAME}")
