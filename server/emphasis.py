"""Weights of tokens applied to what the text encoder made of them."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Mode: TypeAlias = Literal["a1111", "a1111_no_norm", "comfy", "compel", "ignore"]
States: TypeAlias = npt.NDArray[np.float32]
Numbers: TypeAlias = npt.NDArray[np.float64]

MODES: tuple[Mode, ...] = get_args(Mode)
# compel's own, where a weight of 0 would need an infinite share of the prompt without the fragment.
COMPEL_LEAST = 1e-5


def weigh(states: States, weights: States, mode: Mode, empty: States | None = None) -> States:
    """One prompt's states with its weights applied; the input itself, not a copy, when there is nothing to apply.

    - `a1111`: states times weights, then each chunk scaled so that its mean is what it was ("Original").
    - `a1111_no_norm`: states times weights ("No norm").
    - `comfy`: `(state - empty) * weight + empty`.
    - `compel`: the same; a weight below 1 also blends with the prompt that lacks the fragment, as far as a rule for
      single tokens can: see `_compel`.
    - `ignore`: nothing.

    A chunk (`a1111`) or token (the others) of weight 1 keeps its bits. What exceeds float32 becomes its largest number.

    Args:
        states: (chunks, length, width).
        weights: (chunks, length), finite.
        empty: (length, width), the empty prompt's, for `comfy` and `compel`.

    Raises:
        ValueError: `empty` is missing.
    """
    weighted = weights != 1
    if mode == "ignore" or not weighted.any():
        return states
    exact, factors = states.astype(np.float64), weights.astype(np.float64)[..., None]
    if mode in ("comfy", "compel"):
        if empty is None:
            raise ValueError(f"mode {mode} needs the states of the empty prompt")
        result = (exact - empty) * (_compel(factors) if mode == "compel" else factors) + empty
    else:
        result = exact * factors
        if mode == "a1111":
            result *= _restoring(exact, result)
            weighted = weighted.any(axis=-1, keepdims=True)
    limit = np.finfo(np.float32).max
    return np.where(weighted[..., None], np.clip(result, -limit, limit).astype(np.float32), states)


def _restoring(before: Numbers, after: Numbers) -> Numbers:
    """(chunks, 1, 1): what brings each chunk's mean back; 1 where no number does."""
    old, new = (part.mean(axis=(-2, -1), keepdims=True) for part in (before, after))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio: Numbers = old / new
    return np.where(np.isfinite(ratio), ratio, 1.0)


def _compel(weights: Numbers) -> Numbers:
    """compel's weights as factors of the difference from the empty prompt.

    Below 1, compel scales by the weight w and then takes the mean of that and, in tan((1 - w) * pi / 2) parts, the
    states of the prompt without the fragment. Those need a run of the text encoder for every fragment; here they are
    taken to be the empty prompt's at the fragment's own tokens, and unchanged elsewhere.
    """
    parts = np.tan((1 - np.clip(weights, COMPEL_LEAST, 1)) * (math.pi / 2))
    return np.where(weights < 1, weights / (1 + parts), weights)
