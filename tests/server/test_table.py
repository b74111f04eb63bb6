"""server.table: arithmetic on symbols, and what a traced sampler leaves behind."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.table import (
    A1,
    C_IN,
    COLUMNS,
    HISTORY,
    TIMESTEP,
    A,
    B,
    Level,
    Linear,
    N,
    Table,
    Trace,
    TraceError,
    U,
    V,
    compile_table,
)
from tests.fakes import TableRun

X = Linear({("x", 0): 1.0})
H = Linear({("h", 0): 1.0})
UNIT = Level(1.0, 1.0)


def test_symbols_add_scale_and_divide_like_numbers() -> None:
    mixed = (X * 3.0 - H / 4.0 + 2.0 * H) * 2.0
    assert mixed.terms == {("x", 0): 6.0, ("h", 0): 3.5}
    assert (-mixed).terms == {("x", 0): -6.0, ("h", 0): -3.5}
    assert (mixed - mixed).terms == {("x", 0): 0.0, ("h", 0): 0.0}


def test_arithmetic_leaves_its_operands_as_they_were() -> None:
    one, other = Linear({("x", 0): 1.0}), Linear({("h", 0): 2.0})
    for _ in (one + other, one - other, one * 5.0, one / 5.0, -one):
        assert one.terms == {("x", 0): 1.0}
        assert other.terms == {("h", 0): 2.0}


def test_two_symbols_cannot_be_multiplied() -> None:
    with pytest.raises(TypeError):
        X * X  # type: ignore[operator]


@pytest.mark.parametrize("ratio", [0.0, 0.03, 1.0, 14.6])
def test_a_preserving_level_has_unit_variance_and_the_asked_ratio(ratio: float) -> None:
    level = Level.preserving(ratio)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    assert level.sigma / level.alpha == pytest.approx(ratio)


def one_call(level: Level, prediction_type: str) -> npt.NDArray[np.float32]:
    def sampler(trace: Trace, x: Linear) -> Linear:
        _, clean = trace.clean(x, level, 321.5)
        return clean

    line: npt.NDArray[np.float32] = compile_table(sampler, prediction_type, 1.0).lines[0]
    return line


@pytest.mark.parametrize("level", [Level(1.0, 5.0), Level.preserving(5.0), Level(1.0, 0.1), Level.preserving(0.1)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_kept_output_is_the_clean_latent_whatever_the_network_predicts(level: Level, prediction_type: str) -> None:
    line = one_call(level, prediction_type).astype(np.float64)
    clean, noise = 0.7, -1.3
    x = level.alpha * clean + level.sigma * noise
    size = np.hypot(level.alpha, level.sigma)
    predicted = {
        "epsilon": noise,
        "v_prediction": (level.alpha * noise - level.sigma * clean) / size,
        "sample": clean,
    }[prediction_type]
    assert line[U] * x + line[V] * predicted == pytest.approx(clean, abs=1e-5)
    assert line[C_IN] == pytest.approx(1 / size)
    assert line[TIMESTEP] == 321.5


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(KeyError, match="flow"):
        one_call(UNIT, "flow")


def remembering(trace: Trace, x: Linear) -> Linear:
    """Uses all that a job keeps: this latent and the last, four outputs, fresh noise."""
    latents, kept = [x], []
    for call in range(6):
        name, clean = trace.clean(latents[-1], Level(1.0, 1.0 + call), 10.0 * call)
        latents[-1] = name
        kept.append(clean)
        following = name * 0.5 + trace.noise() * 0.1
        if call:
            following = following + latents[-2] * 0.25
        for age, old in enumerate(reversed(kept[-HISTORY:])):
            following = following + old * (0.3 / (1 + age))
        latents.append(following)
    return latents[-1]


class Numbers:
    """Stands in for a trace: the same sampler runs on arrays. The network is tanh; noise is a running count."""

    def __init__(self) -> None:
        self.draws = 0

    def clean(self, x: Any, level: Level, timestep: float) -> tuple[Any, Any]:
        size = np.hypot(level.alpha, level.sigma)
        return x, (x - level.sigma * np.tanh(x / size)) / level.alpha

    def noise(self) -> Any:
        self.draws += 1
        return float(self.draws)


def test_a_table_does_what_the_sampler_does_on_numbers() -> None:
    start = np.linspace(-3, 3, 7)
    on_numbers: Any = remembering
    expected = on_numbers(Numbers(), start)
    run = TableRun(compile_table(remembering, "epsilon", 1.0), start)
    for call in range(6):
        run.advance(np.tanh(run.input), np.full(7, 1.0 + call))
    np.testing.assert_allclose(run.x, expected, rtol=1e-6)


def test_every_use_of_memory_has_its_own_column() -> None:
    lines = compile_table(remembering, "sample", 1.0).lines
    assert lines[:, TIMESTEP].tolist() == [0, 10, 20, 30, 40, 50]
    assert lines[-1, [A, A1, N]] == pytest.approx([0.5, 0.25, 0.1])
    assert lines[-1, B : B + HISTORY] == pytest.approx([0.3, 0.15, 0.1, 0.075])
    assert lines[0, [A1, B + 1, B + 2, B + 3]].tolist() == [0, 0, 0, 0]
    assert lines[1, [B + 2, B + 3]].tolist() == [0, 0]


def reaching_back(kind: str, calls_ago: int) -> Any:
    def sampler(trace: Trace, x: Linear) -> Linear:
        past = []
        for call in range(7):
            x, clean = trace.clean(x, UNIT, float(call))
            past.append({"x": x, "h": clean, "noise": trace.noise()}[kind])
        return x + past[-1 - calls_ago]

    return sampler


@pytest.mark.parametrize(("kind", "oldest"), [("x", 1), ("h", HISTORY - 1), ("noise", 0)])
def test_memory_ends_where_a_jobs_does(kind: str, oldest: int) -> None:
    for calls_ago in range(oldest + 1):
        assert compile_table(reaching_back(kind, calls_ago), "epsilon", 1.0).calls == 7
    with pytest.raises(TraceError, match=f"line 6 needs {kind} of {oldest + 1} calls ago"):
        compile_table(reaching_back(kind, oldest + 1), "epsilon", 1.0)


def test_a_term_that_cancels_out_needs_no_memory() -> None:
    def sampler(trace: Trace, x: Linear) -> Linear:
        first, _ = trace.clean(x, UNIT, 0.0)
        x = first
        for call in range(1, 4):
            x, _ = trace.clean(x, UNIT, float(call))
        return x + first - first

    assert compile_table(sampler, "epsilon", 1.0).calls == 4


def test_the_first_call_must_be_at_the_first_latent() -> None:
    with pytest.raises(TraceError, match="first latent"):
        compile_table(lambda trace, x: trace.clean(x * 2.0, UNIT, 0.0)[1], "epsilon", 1.0)


def test_noise_before_the_first_call_does_not_fit() -> None:
    def sampler(trace: Trace, x: Linear) -> Linear:
        early = trace.noise()
        _, clean = trace.clean(x, UNIT, 0.0)
        return clean + early

    with pytest.raises(TraceError, match="noise"):
        compile_table(sampler, "epsilon", 1.0)


def test_a_table_is_small_single_precision_and_cannot_be_changed() -> None:
    scale: Any = np.float64(14.6)
    table = compile_table(remembering, "epsilon", scale)
    assert table.lines.dtype == np.float32
    assert table.lines.shape == (table.calls, len(COLUMNS)) == (6, 11)
    assert type(table.initial_scale) is float
    with pytest.raises(ValueError, match="read-only"):
        table.lines[0, 0] = 1
    with pytest.raises(AttributeError):
        table.initial_scale = 2.0  # type: ignore[misc]
    assert isinstance(table, Table)


def test_columns_are_named_in_order() -> None:
    places = {"timestep": TIMESTEP, "c_in": C_IN, "u": U, "v": V, "a": A, "a1": A1, "b0": B, "b3": B + 3, "n": N}
    assert {name: COLUMNS.index(name) for name in places} == places
