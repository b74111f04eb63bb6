"""Which noise levels a sampler visits: timestep spacings, sigma schedules, and levels that the client lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from server.schedule import Floats, TrainedSchedule
from server.table import Level

KARRAS_RHO = 7.0
BETA_SHAPE = 0.6
# Sabour et al. (2024), the published ten-step levels; other step counts interpolate them in log sigma.
ALIGN_YOUR_STEPS = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request says of its levels.

    Attributes:
        kind: one of `KINDS`; None leaves it to the checkpoint.
        steps: denoising steps; where levels are listed, their number.
        spacing: of timesteps; None leaves it to the checkpoint, then to the sampler.
        rho: exponent of the Karras and polyexponential levels; None means theirs.
        final: `zero` or `sigma_min`; None leaves it to the checkpoint, then to the sampler.
        timesteps: listed by the client, descending.
        sigmas: listed by the client, descending, without the final one.
        strength: of image-to-image, over 0 and at most 1: the part of the steps that is walked, the last ones.
    """

    kind: str | None = None
    steps: int = 20
    spacing: str | None = None
    rho: float | None = None
    final: str | None = None
    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """From one level to the next; the network is told `timestep`, possibly fractional."""

    timestep: float
    level: Level
    target: Level


@dataclass(frozen=True, slots=True)
class Rule:
    """How a family of diffusers' schedulers lays out its levels.

    Attributes:
        spacing: the default one.
        points: Euler's kin space n points; the DPM family spaces n + 1 and leaves the last one out.
        full_range: sigma schedules span all trained levels, not only the spaced ones.
        whole_karras: timesteps of Karras levels are rounded.
        whole: timesteps of the other sigma schedules are cut to whole numbers.
        final: the default one: `zero`, `sigma_min`, or `last` where a sigma schedule's last level is kept.
        fixed_spacing: the checkpoint's spacing is not heeded.
        fixed_final: the checkpoint's final level is not heeded.
        cosine_whole: Karras timesteps are rounded also where the checkpoint has cosine betas.
    """

    spacing: str
    points: str = "n"
    full_range: bool = False
    whole_karras: bool = False
    whole: bool = False
    final: str = "zero"
    fixed_spacing: bool = False
    fixed_final: bool = False
    cosine_whole: bool = True


EULER = Rule("linspace")
HEUN = Rule("linspace", fixed_final=True)
KDPM2 = Rule("linspace", whole_karras=True, fixed_final=True)
UNIPC = Rule("linspace", points="n+1", full_range=True, whole_karras=True, whole=True)
DPM = replace(UNIPC, cosine_whole=False)
SINGLESTEP = replace(UNIPC, fixed_spacing=True)
DEIS = replace(UNIPC, final="last", fixed_final=True)


def spaced(trained: TrainedSchedule, steps: int, spacing: str) -> Floats:
    """Table 2 of Lin et al. (2023), as diffusers' Euler and DDIM schedulers space their timesteps."""
    if spacing == "linspace":
        return np.linspace(0, trained.length - 1, steps)[::-1]
    if spacing == "leading":
        leading: Floats = np.arange(steps)[::-1] * float(trained.length // steps) + trained.steps_offset
        return leading
    trailing: Floats = np.round(np.arange(trained.length, 0, -trained.length / steps))[:steps] - 1
    return trailing


def _spaced_between(trained: TrainedSchedule, steps: int, spacing: str) -> Floats:
    """The DPM family's own spacing: n + 1 points, the last left out."""
    if spacing == "linspace":
        even: Floats = np.round(np.linspace(0, trained.length - 1, steps + 1))[::-1][:-1]
        return even
    if spacing == "leading":
        stride = float(trained.length // (steps + 1))
        leading: Floats = (np.arange(steps + 1) * stride)[::-1][:-1] + trained.steps_offset
        return leading
    return spaced(trained, steps, spacing)


def karras(high: float, low: float, steps: int, rho: float | None = None) -> Floats:
    """(steps,) descending; Karras et al. (2022), equation 5, rho = 7."""
    power = rho or KARRAS_RHO
    ramp = np.linspace(0, 1, steps)
    first, last = high ** (1 / power), low ** (1 / power)
    sigmas: Floats = (first + ramp * (last - first)) ** power
    return sigmas


def exponential(high: float, low: float, steps: int, rho: float | None = None) -> Floats:
    """Even in log sigma; with rho, k-diffusion's polyexponential."""
    ramp = np.linspace(1, 0, steps) ** (rho or 1.0)
    sigmas: Floats = np.exp(ramp * (math.log(high) - math.log(low)) + math.log(low))
    return sigmas


def beta(high: float, low: float, steps: int, rho: float | None = None) -> Floats:
    """Lee et al. (2024) with alpha = beta = 0.6: quantiles of the beta distribution, in sigma as diffusers does."""
    sigmas: Floats = low + _beta_parts(steps) * (high - low)
    return sigmas


@lru_cache(maxsize=256)
def _beta_parts(steps: int) -> Floats:
    parts = beta_quantile(np.linspace(1, 0, steps), BETA_SHAPE)
    parts.setflags(write=False)
    return parts


def kl_optimal(high: float, low: float, steps: int, rho: float | None = None) -> Floats:
    """Sabour et al. (2024), theorem 3.1: even in arctan sigma."""
    sigmas: Floats = np.tan(np.linspace(math.atan(high), math.atan(low), steps))
    return sigmas


Ranged = Callable[[float, float, int, float | None], Floats]
RANGED: dict[str, Ranged] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": exponential,
    "beta": beta,
    "kl_optimal": kl_optimal,
}


def sgm_uniform(trained: TrainedSchedule, steps: int) -> Floats:
    """Stability's generative-models: n + 1 even timesteps, the last left out; log-interpolated."""
    timesteps = np.linspace(trained.length - 1, 0, steps + 1)[:-1]
    return np.exp(np.interp(timesteps, np.arange(trained.length), trained.log_sigmas))


def simple(trained: TrainedSchedule, steps: int) -> Floats:
    """ComfyUI's: every (length / n)-th trained level from the top."""
    stride = trained.length / steps
    return trained.sigmas[[trained.length - 1 - int(i * stride) for i in range(steps)]]


def ddim_uniform(trained: TrainedSchedule, steps: int) -> Floats:
    """ComfyUI's and CompVis's: 1, 1 + length // n, ...; the number of levels may exceed the steps asked for."""
    return trained.sigmas[1 :: max(trained.length // steps, 1)][::-1]


def _align_your_steps(name: str) -> Callable[[TrainedSchedule, int], Floats]:
    published = np.log(ALIGN_YOUR_STEPS[name])

    def levels(trained: TrainedSchedule, steps: int) -> Floats:
        positions = np.linspace(0, 1, steps + 1)[:-1]
        return np.exp(np.interp(positions, np.linspace(0, 1, len(published)), published))

    return levels


WHOLE: dict[str, Callable[[TrainedSchedule, int], Floats]] = {
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "align_your_steps": _align_your_steps("sd"),
    "align_your_steps_sdxl": _align_your_steps("sdxl"),
}
KINDS = ("normal", *RANGED, *WHOLE)


def beta_quantile(probabilities: Floats, shape: float) -> Floats:
    """The inverse of the regularised incomplete beta function with both parameters `shape`, in [0, 1].

    By bisection on its power series (DLMF 8.17.8), which is used on [0, 1/2]; the rest is its mirror image.
    """
    lower = np.minimum(probabilities, 1 - probabilities)
    orders = np.arange(60)
    # (1 - shape)_n / n!, over shape + n: the series' coefficients.
    series = np.cumprod(np.append(1.0, (orders[1:] - shape) / orders[1:])) / (shape + orders)
    whole = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        share = middle**shape * np.polyval(series[::-1], middle) / whole
        low, high = np.where(share < lower, middle, low), np.where(share < lower, high, middle)
    quantiles: Floats = np.where(probabilities <= 0.5, high, 1 - high)
    return np.where(lower == 0, np.round(probabilities), quantiles)


def interpolated_steps(trained: TrainedSchedule, choice: Choice, rule: Rule) -> list[Step]:
    """Levels anywhere between the trained ones: Euler's kin, k-diffusion's samplers and the DPM family."""
    timesteps, sigmas = _levels(trained, choice, rule)
    final = choice.final or (None if rule.fixed_final else trained.final_sigma) or rule.final
    last = {"zero": 0.0, "sigma_min": float(trained.sigmas[0]), "last": float(sigmas[-1])}[final]
    if final == "last" and choice.kind == "normal":
        last = float(trained.sigmas[0])
    # diffusers keeps sigmas in float32, which shows in the differences of close ones.
    levels = [Level.preserving(sigma) for sigma in np.append(sigmas, last).astype(np.float32).tolist()]
    return [Step(t, level, levels[i + 1]) for i, (t, level) in enumerate(zip(timesteps.tolist(), levels, strict=False))]


def _levels(trained: TrainedSchedule, choice: Choice, rule: Rule) -> tuple[Floats, Floats]:
    if choice.sigmas:
        sigmas = np.array(choice.sigmas)
        return trained.timestep_at(sigmas), sigmas
    if choice.timesteps:
        listed = np.array(choice.timesteps)
        timesteps = np.trunc(listed) if rule.whole else listed
        return timesteps, trained.sigma_at(timesteps)
    if choice.kind in WHOLE:
        sigmas = WHOLE[choice.kind](trained, choice.steps)
        return trained.timestep_at(sigmas), sigmas
    spacing = (None if rule.fixed_spacing else choice.spacing or trained.spacing) or rule.spacing
    lay_out = spaced if rule.points == "n" else _spaced_between
    timesteps = lay_out(trained, choice.steps, spacing)
    sigmas = trained.sigma_at(timesteps)
    if choice.kind == "normal":
        return timesteps, sigmas
    high, low = (trained.sigmas[-1], trained.sigmas[0]) if rule.full_range else (sigmas[0], sigmas[-1])
    rho = choice.rho if choice.kind in ("karras", "polyexponential") else None
    sigmas = RANGED[str(choice.kind)](float(high), float(low), choice.steps, rho)
    return _told(trained, sigmas, str(choice.kind), rule), sigmas


def _told(trained: TrainedSchedule, sigmas: Floats, kind: str, rule: Rule) -> Floats:
    """The timesteps of sigmas, made whole where diffusers makes them whole."""
    timesteps = trained.timestep_at(sigmas)
    if kind == "karras" and rule.whole_karras and (rule.cosine_whole or trained.whole_karras_timesteps):
        return np.round(timesteps)
    # What the interpolation gives for a trained level may lie a hair below its timestep.
    return np.trunc(timesteps + 1e-6) if rule.whole else timesteps


def trained_steps(trained: TrainedSchedule, choice: Choice, to_one: bool = True) -> list[Step]:
    """Whole trained timesteps, each aiming at `length // steps` before it, DDIM's rule; listed ones at the next.

    diffusers has no sigma schedules for DDIM; here they are Euler's levels, and the last target is DDIM's.
    """
    if choice.kind != "normal" or choice.sigmas:
        steps = interpolated_steps(trained, choice, EULER)
        return [*steps[:-1], Step(steps[-1].timestep, steps[-1].level, trained.level(-1, to_one))]
    timesteps = whole_timesteps(trained, choice)
    stride = trained.length // len(timesteps)
    targets = [*timesteps[1:], -1] if choice.timesteps else [t - stride for t in timesteps]
    pairs = zip(timesteps, targets, strict=True)
    return [Step(float(t), trained.level(t), trained.level(target, to_one)) for t, target in pairs]


def whole_timesteps(trained: TrainedSchedule, choice: Choice) -> list[int]:
    """The timesteps of DDIM, DDPM and PNDM."""
    if choice.timesteps:
        return [int(t) for t in choice.timesteps]
    spacing = choice.spacing or trained.spacing or "leading"
    return [int(t) for t in np.round(spaced(trained, choice.steps, spacing))]


def distilled_timesteps(trained: TrainedSchedule, choice: Choice) -> list[int]:
    """Where latent consistency models were distilled, thinned out to the steps asked for (LCM and TCD)."""
    if choice.timesteps:
        return [int(t) for t in choice.timesteps]
    count = trained.original_inference_steps
    origin = (np.arange(count, 0, -1) * (trained.length // count)) - 1
    chosen = np.floor(np.linspace(0, count, choice.steps, endpoint=False)).astype(int)
    return [int(t) for t in origin[chosen]]
