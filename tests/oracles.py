"""diffusers' schedulers as oracles of our tables, in double precision wherever they allow it."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from server.table import TIMESTEP, Table
from tests.fakes import STABLE_DIFFUSION, TableRun

Floats: TypeAlias = npt.NDArray[Any]

LATENT = (1, 4, 4, 4)
TOLERANCE = 1e-5
# What diffusers keeps in float32 although it enters every step.
LEVELS = ("sigmas", "alphas_cumprod", "alphas", "one", "final_alpha_cumprod", "sigmas_interpol", "sigmas_up")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
FOUR_KINDS = ("normal", "karras", "exponential", "beta")


@dataclass(frozen=True)
class Oracle:
    """A class of diffusers with the settings that make it one of our samplers.

    Attributes:
        kinds: sigma schedules that the class has.
        predictions: prediction types that the class accepts.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = FOUR_KINDS
    predictions: tuple[str, ...] = PREDICTION_TYPES


ORACLES = {
    "euler": Oracle("EulerDiscreteScheduler"),
    "euler_ancestral": Oracle("EulerAncestralDiscreteScheduler", {}, ("normal",), PREDICTION_TYPES[:2]),
    "heun": Oracle("HeunDiscreteScheduler"),
    "dpm2": Oracle("KDPM2DiscreteScheduler", {}, FOUR_KINDS, PREDICTION_TYPES[:2]),
    "dpm2_ancestral": Oracle("KDPM2AncestralDiscreteScheduler", {}, FOUR_KINDS, PREDICTION_TYPES[:2]),
    "lms": Oracle("LMSDiscreteScheduler"),
    "dpmpp_2m": Oracle("DPMSolverMultistepScheduler"),
    "dpmpp_3m": Oracle("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2m_sde": Oracle("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": Oracle(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}
    ),
    "dpmpp_3m_sde": Oracle("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpmpp_singlestep": Oracle("DPMSolverSinglestepScheduler"),
    "deis": Oracle("DEISMultistepScheduler"),
    "unipc": Oracle("UniPCMultistepScheduler"),
    "unipc_bh1": Oracle("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    "sa": Oracle("SASolverScheduler"),
    "ddim": Oracle("DDIMScheduler", {"clip_sample": False}, ("normal",)),
    "ddpm": Oracle("DDPMScheduler", {"clip_sample": False}, ("normal",)),
    "pndm": Oracle("PNDMScheduler", {"skip_prk_steps": True}, ("normal",), PREDICTION_TYPES[:2]),
    "lcm": Oracle("LCMScheduler", {}, ("normal",)),
    "tcd": Oracle("TCDScheduler", {}, ("normal",)),
}


def scheduler(sampler: str, steps: int | None, kind: str = "normal", *, levels: Any = None, **config: Any) -> Any:
    """The class that a sampler is checked against, ready for its first step.

    `levels` are further arguments of its `set_timesteps`; keys of `config` that its constructor lacks are left out.
    """
    import diffusers
    import torch

    torch.set_num_threads(1)
    oracle = ORACLES[sampler]
    make = getattr(diffusers, oracle.name)
    wanted = {**STABLE_DIFFUSION, **config, **oracle.settings}
    accepted = inspect.signature(make.__init__).parameters
    lay_out = make.set_timesteps
    # Some constructors lay out a thousand steps first, which takes them long.
    with patch.object(make, "set_timesteps", lambda self, *_: lay_out(self, 2)):
        made = make(**{key: value for key, value in wanted.items() if key in accepted} | special(kind))
    made.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **(levels or {}))
    begin_at(made, 0)
    return made


def special(kind: str) -> dict[str, bool]:
    """The setting of diffusers that turns a sigma schedule on."""
    return {} if kind == "normal" else {f"use_{kind}_sigmas": True}


def begin_at(made: Any, begin: int) -> None:
    """As diffusers' pipelines tell a scheduler which of its timesteps is the first."""
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(begin)


def sharpened(made: Any) -> Any:
    """The same scheduler with its levels in double precision."""
    for name in LEVELS:
        if hasattr(made, name):
            setattr(made, name, getattr(made, name).double())
    return made


def assert_same_plan(table: Table, made: Any, begin: int = 0) -> None:
    """The calls, their timesteps and the scale of the first latent."""
    theirs = np.array([float(timestep) for timestep in made.timesteps[begin:]])
    ours = table.lines[:, TIMESTEP].astype(np.float64)
    assert table.calls == len(theirs)
    # diffusers has the logarithms that it interpolates fractional timesteps from in single precision.
    whole = np.array_equal(theirs, np.round(theirs)) and not hasattr(made, "sigmas_interpol")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if whole else 2e-3)
    assert abs(table.initial_scale / float(made.init_noise_sigma) - 1) <= 1e-6


def assert_same_steps(table: Table, made: Any, *, calls: int | None = None, begin: int = 0, **options: Any) -> None:
    """The plan, then every input of the network and every next latent, on random outputs of the network.

    Their noise and ours come from two generators in the same state: what is drawn when must agree too. Noise is drawn
    in single precision, as a pipeline of diffusers draws it.

    Args:
        calls: how many are compared; None means all.
        begin: which of its timesteps is the first, as diffusers' image-to-image cuts them.
        options: further arguments of `step`.
    """
    import torch

    assert_same_plan(table, made, begin)
    begin_at(sharpened(made), begin)
    outputs, shared, own = (torch.Generator().manual_seed(seed) for seed in (0, 7, 7))
    theirs = torch.randn(LATENT, generator=outputs).double() * float(made.init_noise_sigma)
    run = TableRun(table, theirs.numpy())
    if "generator" in inspect.signature(made.step).parameters:
        options["generator"] = shared

    def randn(shape: Any, *, generator: Any, dtype: Any, **_: Any) -> Any:
        return torch.randn(shape, generator=generator).to(dtype)

    home = sys.modules[type(made).__module__]
    with patch.object(home, "randn_tensor", randn, create=True):
        for call, timestep in enumerate(made.timesteps[begin:][:calls]):
            assert apart(run.input, made.scale_model_input(theirs, timestep).numpy()) <= TOLERANCE, call
            output = torch.randn(LATENT, generator=outputs).double()
            theirs = made.step(output, timestep, theirs, return_dict=False, **options)[0].double()
            run.advance(output.numpy(), torch.randn(LATENT, generator=own).numpy() if table.draws[call] else None)
            assert apart(run.x, theirs.numpy()) <= TOLERANCE, call
    assert torch.equal(shared.get_state(), own.get_state())


def apart(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> float:
    """The largest difference, relative to the largest value; infinite where either is not finite."""
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return difference if np.isfinite(difference) else np.inf


def clean_estimate(
    x: npt.NDArray[Any], m: npt.NDArray[Any], alpha: float, sigma: float, prediction_type: str
) -> npt.NDArray[Any]:
    """The clean latent that the guided output `m` of the network says is in x = alpha * clean + sigma * noise.

    For the variance-preserving frame (alpha^2 + sigma^2 = 1) and the exploding one (alpha = 1) alike; v is that of
    Salimans and Ho (2022) of x brought to unit variance.
    """
    if prediction_type == "epsilon":
        noiseless: Floats = (x - sigma * m) / alpha
        return noiseless
    if prediction_type == "v_prediction":
        norm = float(np.hypot(alpha, sigma))
        turned: Floats = (alpha / norm * x - sigma * m) / norm
        return turned
    return m
