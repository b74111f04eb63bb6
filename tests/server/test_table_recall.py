"""server.table: a table does what its sampler does on arrays, also where the sampler remembers more than a job."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pytest

from server.table import A1, Level, Linear, Table, Trace, TraceError, compile_table
from tests.fakes import TableRun

Values: TypeAlias = npt.NDArray[np.float64]
# A sampler that runs on symbols as well as on arrays.
Either: TypeAlias = Callable[[Any, Any], Any]

UNIT = Level(1.0, 1.0)
START = np.linspace(-3, 3, 7)
SEEDS = range(300)


class Numbers:
    """Stands in for a trace: the same sampler runs on arrays. The network is tanh, and predicts noise."""

    def __init__(self, noises: list[Values]) -> None:
        self.calls = 0
        self._noises = noises

    def raw(self, x: Any, level: Level, timestep: float) -> tuple[Any, Any]:
        self.calls += 1
        return x, np.tanh(x / np.hypot(level.alpha, level.sigma))

    def epsilon(self, x: Any, level: Level, timestep: float) -> tuple[Any, Any]:
        return self.raw(x, level, timestep)

    def clean(self, x: Any, level: Level, timestep: float) -> tuple[Any, Any]:
        x, noise = self.raw(x, level, timestep)
        return x, (x - level.sigma * noise) / level.alpha

    def noise(self) -> Any:
        return self._noises[self.calls - 1]


def some_noises(count: int) -> list[Values]:
    draw = np.random.default_rng(5)
    return [draw.standard_normal(START.shape) for _ in range(count)]


def on_numbers(sampler: Either, calls: int) -> Values:
    ended: Values = sampler(Numbers(some_noises(calls)), START)
    return ended


def by_lines(sampler: Either, calls: int) -> Values:
    """The end of a run along the lines that a sampler leaves, before they are rounded to single precision."""
    trace = Trace("epsilon")
    run = TableRun(cast(Table, SimpleNamespace(lines=trace.finish(sampler(trace, Linear({("x", 0): 1.0}))))), START)
    for noise in some_noises(calls):
        run.advance(np.tanh(run.input), noise)
    return run.x


def anything(seed: int) -> tuple[Either, int]:
    """A random linear method with a memory of its own, and how often it calls the network."""
    draw = np.random.default_rng(seed)
    calls = int(draw.integers(1, 8))
    levels = [Level(*values) for values in draw.uniform(0.2, 2.0, (calls, 2)).tolist()]
    keeps = draw.choice(["clean", "epsilon", "raw"])
    factors = draw.choice([0.0, 0.5, -0.7, 1.0], (calls, 12), p=[0.4, 0.2, 0.2, 0.2]).tolist()
    # Some remember no more than a job does, some up to twice as much.
    reach = {"x": 1 + seed % 3, "h": 1 + seed % 6, "noise": 1 + seed % 2}

    def sampler(trace: Any, x: Any) -> Any:
        past: dict[str, list[Any]] = {"x": [], "h": [], "noise": []}
        for level, row in zip(levels, factors, strict=True):
            x, h = getattr(trace, keeps)(x, level, 7.0)
            for kind, value in (("x", x), ("h", h), ("noise", trace.noise())):
                past[kind] = [value, *past[kind]][: reach[kind]]
            remembered = [value for values in past.values() for value in values]
            x = x * 0.25
            for value, factor in zip(remembered, row, strict=False):
                x = x + value * factor
        return x

    return sampler, calls


def fits(seed: int) -> bool:
    """Whether that method remembers no more than a job: two latents, four outputs, one noise."""
    return seed % 3 < 2 and seed % 6 < 4 and seed % 2 == 0


def test_whatever_compiles_equals_its_sampler() -> None:
    """Where an older value can be had from later ones it is; where it cannot, that is said."""
    recalled = refused = 0
    for seed in SEEDS:
        sampler, calls = anything(seed)
        try:
            ended = by_lines(sampler, calls)
        except TraceError:
            assert not fits(seed), seed
            refused += 1
            continue
        recalled += not fits(seed)
        np.testing.assert_allclose(ended, on_numbers(sampler, calls), rtol=1e-6, atol=1e-6, err_msg=str(seed))
    assert min(refused, recalled) > 20


def test_single_precision_is_enough_where_nothing_is_read_back() -> None:
    for seed in filter(fits, SEEDS):
        sampler, calls = anything(seed)
        run = TableRun(compile_table(sampler, "epsilon", 1.0), START)
        for noise in some_noises(calls):
            run.advance(np.tanh(run.input), noise)
        expected = on_numbers(sampler, calls)
        assert np.abs(run.x - expected).max() <= 1e-5 * np.abs(expected).max(), seed


def bashforth(order: int, last: int) -> Either:
    """A multistep method with a memory of `order` outputs, and of `last` in the last step."""

    def sampler(trace: Any, x: Any) -> Any:
        past: list[Any] = []
        for call in range(7):
            x, h = trace.epsilon(x, UNIT, float(call))
            past = [h, *past]
            for age, output in enumerate(past[: last if call == 6 else order]):
                x = x + output * (0.5 / (1 + age))
        return x

    return sampler


def test_an_old_output_is_read_back_from_the_line_that_used_it_last() -> None:
    sampler = bashforth(4, 5)
    np.testing.assert_allclose(by_lines(sampler, 7), on_numbers(sampler, 7), rtol=1e-9)
    plain, reading = compile_table(bashforth(4, 4), "epsilon", 1.0), compile_table(sampler, "epsilon", 1.0)
    assert (plain.lines[-1, A1], plain.recalls) == (0, False)
    assert reading.lines[-1, A1] != 0
    assert reading.recalls


@pytest.mark.parametrize(("order", "last"), [(4, 6), (5, 5), (3, 5)])
def test_an_old_output_is_lost_where_two_are_unknown_or_none_was_used(order: int, last: int) -> None:
    with pytest.raises(TraceError, match=r"needs what a job no longer has|h of call 2 is needed"):
        compile_table(bashforth(order, last), "epsilon", 1.0)


def returning(calls_ago: int, used: bool = True) -> Either:
    """Goes back to an old latent; Runge-Kutta methods do when they start again from where a step began."""

    def sampler(trace: Any, x: Any) -> Any:
        latents = []
        for call in range(6):
            x, h = trace.clean(x, UNIT, float(call))
            latents.append(x)
            x = (x if used else x * 0.0) + h * 0.5
        return x * 0.5 + latents[-1 - calls_ago]

    return sampler


@pytest.mark.parametrize("calls_ago", [0, 1, 2, 3])
def test_an_old_latent_is_read_back_from_where_it_led(calls_ago: int) -> None:
    np.testing.assert_allclose(by_lines(returning(calls_ago), 6), on_numbers(returning(calls_ago), 6), rtol=1e-9)


def test_an_old_latent_is_lost_with_what_led_away_from_it() -> None:
    with pytest.raises(TraceError, match="line 5 needs what a job no longer has"):
        compile_table(returning(4), "epsilon", 1.0)
    with pytest.raises(TraceError, match="x of call 3 is needed, but no line that could give it back has used it"):
        compile_table(returning(2, used=False), "epsilon", 1.0)


def noisy(calls_ago: int, used: bool) -> Either:
    """Uses a noise again, as methods do whose two noises lie on one path."""

    def sampler(trace: Any, x: Any) -> Any:
        noises = []
        for call in range(4):
            x, h = trace.clean(x, UNIT, float(call))
            noises.append(trace.noise())
            x = x + h * 0.5 + noises[-1] * (0.25 if used else 0.0)
        return x + noises[-1 - calls_ago] * 2.0

    return sampler


def test_an_old_noise_is_read_back_from_the_latent_that_it_went_into() -> None:
    for calls_ago in (0, 1):
        np.testing.assert_allclose(by_lines(noisy(calls_ago, True), 4), on_numbers(noisy(calls_ago, True), 4))
    with pytest.raises(TraceError, match="noise of call 2 is needed"):
        compile_table(noisy(1, used=False), "epsilon", 1.0)
    with pytest.raises(TraceError):
        compile_table(noisy(2, used=True), "epsilon", 1.0)
