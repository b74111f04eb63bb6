"""server.table: arithmetic on symbols, and what a traced sampler leaves behind."""

from typing import Any, cast

import numpy as np
import pytest

from server.table import (
    A1,
    C_IN,
    COLUMNS,
    FUSED_M,
    FUSED_X,
    HISTORY,
    KEEPS_H,
    KEEPS_X,
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
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


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
    assert level.ratio == level.sigma / level.alpha == pytest.approx(ratio)


@pytest.mark.parametrize(("abar", "alpha", "sigma"), [(1.0, 1.0, 0.0), (0.64, 0.8, 0.6), (0.0, 0.0, 1.0)])
def test_a_level_may_be_given_by_its_share_of_signal(abar: float, alpha: float, sigma: float) -> None:
    assert (Level.at(abar).alpha, Level.at(abar).sigma) == pytest.approx((alpha, sigma))


def predicted(level: Level, clean: float, noise: float, prediction_type: str) -> float:
    """What the perfect network says of alpha * clean + sigma * noise; Salimans and Ho (2022) for v."""
    size = np.hypot(level.alpha, level.sigma)
    v = (level.alpha * noise - level.sigma * clean) / size
    return float({"epsilon": noise, "v_prediction": v, "sample": clean}[prediction_type])


@pytest.mark.parametrize("level", [Level(1.0, 5.0), Level.preserving(5.0), Level(1.0, 0.1), Level.preserving(0.1)])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kept", ["clean", "epsilon", "raw"])
def test_what_is_kept_is_right_whatever_the_network_predicts(kept: str, prediction_type: str, level: Level) -> None:
    def sampler(trace: Trace, x: Linear) -> Linear:
        return cast(Linear, getattr(trace, kept)(x, level, 321.5)[1])

    line = compile_table(sampler, prediction_type, 1.0).lines[0].astype(np.float64)
    clean, noise = 0.7, -1.3
    output = predicted(level, clean, noise, prediction_type)
    h = line[U] * (level.alpha * clean + level.sigma * noise) + line[V] * output
    assert h == pytest.approx({"clean": clean, "epsilon": noise, "raw": output}[kept], abs=1e-5)
    assert line[C_IN] == pytest.approx(1 / np.hypot(level.alpha, level.sigma))
    assert line[TIMESTEP] == 321.5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_raw_outputs_tell_the_clean_latent_later(prediction_type: str) -> None:
    """Also an average of them, as PNDM takes it."""

    def sampler(trace: Trace, x: Linear) -> Linear:
        x, first = trace.raw(x, level, 1.0)
        x, second = trace.raw(x, level, 2.0)
        return trace.to_clean(x, (first + second) / 2, level)

    level, clean, noise = Level.preserving(2.0), 0.7, -1.3
    run = TableRun(compile_table(sampler, prediction_type, 1.0), np.array([level.alpha * clean + level.sigma * noise]))
    output = predicted(level, clean, noise, prediction_type)
    run.advance(np.array([output - 0.25]))
    run.advance(np.array([output + 0.25]))
    assert run.x == pytest.approx([clean], abs=1e-5)


def remembering(trace: Any, x: Any) -> Any:
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


def test_every_use_of_memory_has_its_own_column() -> None:
    lines = compile_table(remembering, "sample", 1.0).lines
    assert lines[:, TIMESTEP].tolist() == [0, 10, 20, 30, 40, 50]
    assert lines[-1, [A, A1, N]] == pytest.approx([0.5, 0.25, 0.1])
    assert lines[-1, B : B + HISTORY] == pytest.approx([0.3, 0.15, 0.1, 0.075])
    assert lines[0, [A1, B + 1, B + 2, B + 3]].tolist() == [0, 0, 0, 0]
    assert lines[1, [B + 2, B + 3]].tolist() == [0, 0]


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


def test_a_draw_is_made_after_a_call_even_where_nothing_is_left_of_it() -> None:
    def sampler(trace: Trace, x: Linear) -> Linear:
        for call in range(4):
            x, _ = trace.clean(x, UNIT, float(call))
            if call in (1, 3):
                x = x + trace.noise() * (0.5 if call == 1 else 0.0)
        return x

    table = compile_table(sampler, "epsilon", 1.0)
    assert table.draws == (False, True, False, True)
    assert table.lines[:, N].tolist() == [0, 0.5, 0, 0]


def test_a_table_knows_what_later_lines_need() -> None:
    lines = np.zeros((5, len(COLUMNS)))
    lines[2, A1] = lines[3, B + 2] = lines[4, B + 3] = 1
    table = Table.of(lines, 1.0, {0, 4})
    assert table.moves[:, [KEEPS_X, KEEPS_H]].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]]
    assert table.draws == (True, False, False, False, True)


def test_fused_columns_are_the_step_without_memory() -> None:
    table = compile_table(remembering, "v_prediction", 1.0)
    x, output = 0.3, -1.7
    for line, fused in zip(
        table.lines.astype(np.float64), table.moves[:, [FUSED_X, FUSED_M]].astype(np.float64), strict=True
    ):
        plain = line[A] * x + line[B] * (line[U] * x + line[V] * output)
        assert fused @ [x, output] == pytest.approx(plain, rel=1e-5)


def test_a_table_is_small_single_precision_and_cannot_be_changed() -> None:
    scale: Any = np.float64(14.6)
    table = compile_table(remembering, "epsilon", scale)
    assert table.lines.dtype == table.moves.dtype == table.levels.dtype == np.float32
    assert table.lines.shape == (table.calls, len(COLUMNS)) == (6, 13)
    assert type(table.initial_scale) is float
    for values in (table.lines, table.moves, table.levels):
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0] = 1
    with pytest.raises(AttributeError):
        table.initial_scale = 2.0  # type: ignore[misc]


def test_a_table_has_the_level_of_every_call_and_of_the_result() -> None:
    levels = [Level(0.5, 2.0), Level(1.0, 0.25), Level(0.75, 0.125)]

    def sampler(trace: Trace, x: Linear) -> Linear:
        x, _ = trace.clean(x, levels[0], 9.0)
        x, _ = trace.epsilon(x, levels[1], 5.0)
        x, h = trace.raw(x, levels[1], 4.0, told=levels[2])
        return x + h

    table = compile_table(sampler, "epsilon", 1.0)
    assert table.levels.tolist() == [[0.5, 2], [1, 0.25], [0.75, 0.125], [1, 0]]
    # What the network is told does not change where the latent is.
    assert table.lines[1, C_IN] == table.lines[2, C_IN]
    assert Table.of(np.zeros((2, len(COLUMNS))), 1.0, ()).levels.tolist() == 3 * [[1, 0]]


def test_columns_are_named_in_order() -> None:
    places = {"timestep": TIMESTEP, "c_in": C_IN, "u": U, "v": V, "a": A, "a1": A1, "b0": B, "b3": B + 3, "n": N}
    assert {name: COLUMNS.index(name) for name in places} == places
