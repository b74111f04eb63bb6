"""The samplers as tables: which function each is, on which levels it walks, and how its first latent is scaled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from server import correctors, exploding, exponential, preserving
from server.errors import ScheduleError
from server.levels import (
    DEIS,
    DPM,
    EULER,
    HEUN,
    KDPM2,
    SINGLESTEP,
    UNIPC,
    Choice,
    Rule,
    Step,
    distilled_timesteps,
    interpolated_steps,
    trained_steps,
)
from server.schedule import TrainedSchedule
from server.table import Linear, Table, Trace, compile_table

Lay = Callable[[TrainedSchedule, Choice], list[Step]]


@dataclass(frozen=True, slots=True)
class Method:
    """A sampler's function and its surroundings.

    Attributes:
        sample: traced on the steps; keyword options as in `options`.
        lay: gives the steps.
        rule: of its levels, where they are interpolated; None on trained timesteps.
        options: the request's fields that it heeds, with their defaults.
        heeds_kind: whether sigma schedules apply.
        heeds_start: whether `sample` is told how many steps were `skipped` before its first.
    """

    sample: Callable[..., Linear]
    lay: Lay
    rule: Rule | None = None
    exploding: bool = False
    options: dict[str, float] = field(default_factory=dict)
    heeds_kind: bool = True
    heeds_start: bool = False


def _exploding(sample: Callable[..., Linear], rule: Rule = EULER, **options: float) -> Method:
    return Method(sample, partial(interpolated_steps, rule=rule), rule, True, options)


def _exponential(
    sample: Callable[..., Linear], rule: Rule = DPM, *, heeds_start: bool = True, **options: float
) -> Method:
    return Method(sample, partial(interpolated_steps, rule=rule), rule, False, options, heeds_start=heeds_start)


def _distilled(trained: TrainedSchedule, choice: Choice) -> list[Step]:
    if choice.steps > trained.original_inference_steps and not choice.timesteps:
        raise ScheduleError(
            f"num_inference_steps is {choice.steps}; lcm and tcd take at most "
            f"{trained.original_inference_steps}, the steps that the checkpoint was distilled on: send fewer"
        )
    levels = [(float(t), trained.level(t)) for t in distilled_timesteps(trained, choice)]
    return [Step(t, level, level) for t, level in levels]


METHODS: dict[str, Method] = {
    "euler": _exploding(exploding.euler),
    "euler_ancestral": _exploding(exploding.euler_ancestral, HEUN, eta=1.0),
    "heun": _exploding(exploding.heun, HEUN),
    "dpm2": _exploding(exploding.dpm2, KDPM2),
    "dpm2_ancestral": _exploding(exploding.dpm2_ancestral, KDPM2, eta=1.0),
    "lms": _exploding(exploding.lms, HEUN, solver_order=4),
    "dpmpp_2s_ancestral": _exploding(exploding.dpmpp_2s_ancestral, HEUN, eta=1.0),
    "dpmpp_sde": _exploding(exploding.dpmpp_sde, HEUN, eta=1.0),
    "dpm_fast": replace(_exploding(exploding.dpm_fast, SINGLESTEP, eta=0.0), heeds_start=True),
    "restart": _exploding(exploding.restart, HEUN),
    "dpmpp_2m": _exponential(exponential.dpmpp),
    "dpmpp_3m": _exponential(partial(exponential.dpmpp, order=3)),
    "dpmpp_2m_sde": _exponential(partial(exponential.dpmpp, sde=True)),
    "dpmpp_2m_sde_heun": _exponential(partial(exponential.dpmpp, sde=True, heun=True)),
    "dpmpp_3m_sde": _exponential(partial(exponential.dpmpp, sde=True, order=3)),
    "dpmpp_singlestep": _exponential(exponential.dpmpp_singlestep, SINGLESTEP, solver_order=2),
    "deis": _exponential(exponential.deis, DEIS, solver_order=2),
    "unipc": _exponential(correctors.unipc, UNIPC, heeds_start=False, solver_order=2),
    "unipc_bh1": _exponential(partial(correctors.unipc, bh1=True), UNIPC, heeds_start=False, solver_order=2),
    "sa": _exponential(correctors.sa, DEIS, heeds_start=False),
    "ddim": Method(preserving.ddim, trained_steps, options={"eta": 0.0}),
    "ddpm": Method(preserving.ddpm, trained_steps, heeds_kind=False),
    "pndm": Method(preserving.pndm, partial(trained_steps, to_one=False), heeds_kind=False, heeds_start=True),
    "lcm": Method(preserving.lcm, _distilled),
    "tcd": Method(preserving.tcd, _distilled, options={"eta": 0.3}),
}


def sampler_table(
    name: str, choice: Choice, trained: TrainedSchedule, eta: float | None = None, solver_order: int | None = None
) -> Table:
    """The table of a sampler.

    Args:
        name: a key of `METHODS`.
        choice: of levels; with less than full strength the table starts late, and its sampler with no past.
        eta: how much of the noise is fresh, 0 to 1; None means the sampler's own.
        solver_order: None means the sampler's own.

    Raises:
        ScheduleError: levels that the sampler cannot walk on.
    """
    try:
        return _table(name, choice, trained, {"eta": eta, "solver_order": solver_order})
    except (ArithmeticError, ValueError) as error:
        raise ScheduleError(
            f"{name} cannot walk on these levels ({error}); they may lie too close: send another schedule, rho or list"
        ) from error


def _table(name: str, choice: Choice, trained: TrainedSchedule, given: dict[str, float | None]) -> Table:
    method = METHODS[name]
    # diffusers' samplers on trained timesteps know no `use_karras_sigmas` and its like.
    kind = (choice.kind or (trained.kind if method.rule else "normal")) if method.heeds_kind else "normal"
    steps = method.lay(trained, replace(choice, kind=kind))
    options = {key: default if given[key] is None else given[key] for key, default in method.options.items()}
    if "solver_order" in options:
        options["order"] = options.pop("solver_order")
    skipped = skipped_steps(len(steps), choice.strength)
    if method.heeds_start:
        options["skipped"] = skipped

    def sample(trace: Trace, x: Linear) -> Linear:
        return method.sample(trace, x, steps[skipped:], trained, **options)

    return compile_table(sample, trained.prediction_type, _initial_scale(method, steps, choice, trained))


def _initial_scale(method: Method, steps: list[Step], choice: Choice, trained: TrainedSchedule) -> float:
    """diffusers' `init_noise_sigma`."""
    if method.rule is None or not method.exploding:
        return 1.0
    sigma = max(step.level.ratio for step in steps)
    spacing = method.rule.spacing
    if not method.rule.fixed_spacing:
        spacing = choice.spacing or trained.spacing or spacing
    return sigma if spacing in ("linspace", "trailing") else math.hypot(sigma, 1)


def skipped_steps(steps: int, strength: float) -> int:
    """How many of the steps image-to-image leaves out at the start, as diffusers' `get_timesteps` counts them.

    Raises:
        ScheduleError: none would be left.
    """
    if strength >= 1:
        return 0
    walked = int(steps * _as_written(strength))
    if walked < 1:
        # Rounded up to four places: also 49 * (1 / 49) is less than 1.
        least = math.ceil(10_000 / steps) / 10_000
        raise ScheduleError(
            f"strength is {strength:.7g}, which leaves none of {steps} steps to walk; from {least:g} on it leaves one: "
            "raise strength, or the number of steps"
        )
    return steps - walked


def _as_written(strength: float) -> float:
    """The number that the client wrote.

    A request has its strength in float32, where 0.7 is 0.699999988 and would leave 6 of 10 steps, not the 7 that it
    leaves diffusers, which has it in float64. So what is a float32 stands for the shortest decimal that rounds to it.
    """
    single = np.float32(strength)
    return float(str(single)) if float(single) == strength else strength
