"""The overflow probe: `python -m export.overflow DIR` shows what each fp32 island of an export keeps from breaking.

What enters an island grows by a factor, until the graph without the island breaks: values that are not finite, or far
from exact fp32. The graph with it must still agree. Nothing here runs in half precision: see `export.rounding`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.catalog import SIDE_MULTIPLE
from engines.component import Arrays, Component, PipelineSpec, TensorSpec, file_sha256
from engines.errors import ArtefactError, EngineError
from engines.precision import plan_for
from engines.runner import open_runner
from export.errors import ExportError
from export.rounding import borders, constant, emulate, island_of
from export.to_onnx import example_inputs

# The last one leaves room for values of a few units below fp16's limit, 65504.
FACTORS = tuple(4.0**power for power in range(8))
FACTOR, PEAK = "overflow_factor", "overflow_peak"
# In standard deviations of the exact output: what more than rounding has gone wrong beyond.
LIMIT = 0.2


@dataclass(frozen=True, slots=True)
class Reading:
    """One factor's outcome.

    Attributes:
        peak: the largest magnitude computed in the island, in exact arithmetic.
        without, with_island: largest difference from exact fp32, in its standard deviations; infinite where an output
            is not finite.
    """

    factor: float
    peak: float
    without: float
    with_island: float


@dataclass(frozen=True, slots=True)
class Finding:
    """The readings of one island, up to the first factor without finite values where it is left out."""

    component: str
    island: str
    readings: tuple[Reading, ...]

    @property
    def holds(self) -> bool:
        """Whether the graph with the island agrees with exact fp32 at every factor."""
        return all(reading.with_island <= LIMIT for reading in self.readings)


def islands(component: Component, folder: Path) -> tuple[str, ...]:
    """The islands that a component's graph has."""
    graph = ir.load(folder / component.file).graph
    return tuple(sorted({island_of(node) for node in graph} - {""}))


def probe(component: Component, folder: Path, island: str, side: int = 8) -> Finding:
    """Provoke one island.

    Args:
        side: of the latents, for one row.
    """
    sizes = {"rows": 1, "tokens": 77, "height": side, "width": side}
    feeds = {name: tensor.numpy() for name, tensor in example_inputs(component.inputs, sizes).items()}
    exact = list(_outputs(component, folder, feeds, island, FACTORS, exact=True))
    without: list[float] = []
    for outputs in _outputs(component, folder, feeds, island, FACTORS, drowned=island):
        without.append(_difference(component, outputs, exact[len(without)]))
        if not np.isfinite(without[-1]):
            break
    factors = FACTORS[: len(without)]
    with_island = [
        _difference(component, outputs, reference)
        for outputs, reference in zip(_outputs(component, folder, feeds, island, factors), exact, strict=False)
    ]
    peaks = [float(outputs[PEAK]) for outputs in exact]
    readings = zip(factors, peaks, without, with_island, strict=False)
    return Finding(component.name, island, tuple(Reading(*reading) for reading in readings))


def _outputs(
    component: Component,
    folder: Path,
    feeds: Arrays,
    island: str,
    factors: tuple[float, ...],
    *,
    drowned: str = "",
    exact: bool = False,
) -> Iterator[Arrays]:
    """The component's outputs at each factor, one session at a time, and with `exact` the island's peak."""
    with tempfile.TemporaryDirectory() as work:
        model = ir.load(folder / component.file)
        _provoke(model, island)
        inhabitants = [node for node in model.graph if island_of(node) == island]
        emulate(model, drowned, exact)
        inputs = (*component.inputs, TensorSpec(FACTOR, "float32", ()))
        outputs = component.outputs
        if exact:
            _measure(model.graph, inhabitants)
            outputs = (*outputs, TensorSpec(PEAK, "float32", ()))
        ir.save(model, Path(work) / component.file, external_data=f"{component.file}.data")
        provoked = replace(component, inputs=inputs, outputs=outputs)
        runner = open_runner(provoked, Path(work), provider="cpu")
        for factor in factors:
            yield runner.infer({**feeds, FACTOR: np.array(factor, np.float32)})


def _provoke(model: ir.Model, island: str) -> None:
    """Let a new input of the graph raise all that enters the island."""
    graph = model.graph
    factor = ir.Value(name=FACTOR, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(factor)
    for value in list(borders(model, island)):
        users = [use for use in value.uses() if island_of(use.node) == island]
        operand = _operand(*users[0])
        if operand is None:
            made = [_node("Mul", value, value, factor)]
        elif operand.scaled:
            made = _outlier(graph, value, factor, axis=-2 if operand.index else -1)
        else:
            continue
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], made)
        else:
            graph.insert_after(producer, made)
        for user, index in users:
            user.replace_input_with(index, made[-1].outputs[0])


@dataclass(frozen=True, slots=True)
class _Operand:
    """How a value comes to a matrix product: as which operand, and whether it is scaled before, as queries and keys."""

    index: int
    scaled: bool


def _operand(node: ir.Node, index: int) -> _Operand | None:
    scaled = False
    while node.op_type in ("Cast", "Mul") and len(node.outputs[0].uses()) == 1:
        scaled |= node.op_type == "Mul"
        (node, index), *_ = node.outputs[0].uses()
    return _Operand(index, scaled) if node.op_type == "MatMul" else None


def _outlier(graph: ir.Graph, value: ir.Value, factor: ir.Value, axis: int) -> list[ir.Node]:
    """The first channel of queries or keys becomes the factor: all products of a query grow by the same, which the
    softmax does not see. Channels like that, not large values throughout, are what overflows in checkpoints."""
    number = partial(constant, graph, f"provoked/{value.name}")
    zero, one = number("zero", np.array([0])), number("one", np.array([1]))
    end, along = number("end", np.array([np.iinfo(np.int64).max])), number("axis", np.array([axis]))
    first = _node("Slice", value, value, zero, one, along)
    rest = _node("Slice", value, value, one, end, along)
    none = _node("Sub", value, first.outputs[0], first.outputs[0])
    raised = _node("Add", value, none.outputs[0], factor)
    return [first, rest, none, raised, _node("Concat", value, raised.outputs[0], rest.outputs[0], axis=axis)]


def _node(operator: str, like: ir.Value, *inputs: ir.Value, **attributes: int) -> ir.Node:
    node = ir.node(operator, list(inputs), attributes)
    node.outputs[0].type = like.type
    return node


def _measure(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Make the largest magnitude among the nodes' results an output."""
    peaks: list[ir.Value | None] = []
    for node in nodes:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                size = ir.node("Abs", [value])
                peak = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0})
                graph.extend([size, peak])
                peaks.append(peak.outputs[0])
    largest = ir.Value(name=PEAK, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.append(ir.node("Max", peaks, outputs=[largest]))
    graph.outputs.append(largest)


def _difference(component: Component, ours: Arrays, exact: Arrays) -> float:
    """The largest difference of any output, in standard deviations of the exact one."""
    worst = 0.0
    for spec in component.outputs:
        if not np.isfinite(ours[spec.name]).all():
            return float("inf")
        reference = exact[spec.name]
        worst = max(worst, float(np.abs(ours[spec.name] - reference).max() / reference.std()))
    return worst


def table(finding: Finding, reason: str) -> str:
    """For people, with what the plan says is the island's reason."""
    lines = [
        f"{finding.component}, island {finding.island}: {reason}",
        f"{'factor':>8} {'peak':>10} {'without it':>12} {'with it':>10}   (largest difference, in standard deviations)",
    ]
    for r in finding.readings:
        lines.append(f"{r.factor:8g} {r.peak:10.3g} {r.without:12.3g} {r.with_island:10.3g}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.overflow", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="an export made with --precision fp16 or bf16")
    parser.add_argument("--component", default="unet", help="default: unet")
    parser.add_argument("--island", action="append", help="may be repeated; default: every island of the component")
    parser.add_argument("--side", type=int, default=8, help="of the latents; default: 8")
    options = parser.parse_args(arguments)
    try:
        findings = list(_report(options.folder, options.component, options.island, options.side))
    except (EngineError, ExportError, OSError) as error:
        print(f"export.overflow: {error}", file=sys.stderr)
        return 1
    return 0 if all(finding.holds for finding in findings) else 1


def _report(folder: Path, name: str, asked: list[str] | None, side: int) -> Iterator[Finding]:
    """Probe the islands that are asked for, or all, and print each table as it is found."""
    spec = PipelineSpec.read(folder)
    component = spec.component(name)
    path = folder / component.file
    if not path.is_file() or file_sha256(path) != component.sha256:
        raise ArtefactError(f"{path} is missing or damaged; run `python -m export` again")
    if side < SIDE_MULTIPLE or side % SIDE_MULTIPLE:
        raise ExportError(f"latents of {side}x{side} do not fit; give --side a multiple of {SIDE_MULTIPLE}")
    found = islands(component, folder)
    if not found:
        raise ExportError(f"{name} has no islands; export it with --precision fp16 or bf16")
    if unknown := sorted(set(asked or ()) - set(found)):
        raise ExportError(f"{name} has the islands {', '.join(found)}, not {', '.join(unknown)}")
    # What is an island as a whole says fp32 of itself.
    plan = plan_for(spec.family, name, "bf16" if component.precision == "bf16" else "fp16")
    reasons = {island.name: island.reason for island in plan.islands}
    for island in asked or found:
        finding = probe(component, folder, island, side)
        print(table(finding, reasons.get(island, "as exported")), flush=True)
        yield finding


if __name__ == "__main__":
    raise SystemExit(main())
