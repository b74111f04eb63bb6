"""Precision plans in graphs: what is raised, where casts lie, and that the graph computes the same."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from diffusers import UNet2DConditionModel

from engines.component import Component, Precision, TensorSpec
from engines.precision import Island, PrecisionPlan, plan_for
from engines.runner import open_runner
from export.graph import SCOPES, apply_plan, scope
from export.rounding import island_of
from export.to_onnx import example_inputs, export_onnx
from export.wrappers import Unet

Unets = dict[Precision, tuple[Component, Path]]
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
SIZES = {"rows": 2, "tokens": 77, "height": 8, "width": 8}


def graph_of(unets: Unets, precision: Precision) -> ir.Graph:
    component, folder = unets[precision]
    return ir.load(folder / component.file).graph


def floats(node: ir.Node) -> set[ir.DataType | None]:
    return {value.dtype for value in (*node.inputs, *node.outputs) if value is not None} & {HALF, FLOAT}


def maker(value: ir.Value | None) -> ir.Node:
    """The node that computes a value."""
    node = value.producer() if value is not None else None
    assert node is not None
    return node


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_checker_accepts_every_precision(unets: Unets, precision: Precision) -> None:
    component, folder = unets[precision]
    onnx.checker.check_model(str(folder / component.file), full_check=True)
    graph = graph_of(unets, precision)
    assert {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)} == dict.fromkeys(
        ("sample", "timestep", "encoder_hidden_states", "out_sample"), FLOAT
    )


def test_islands_compute_in_fp32_and_the_rest_in_fp16(unets: Unets) -> None:
    nodes = [node for node in graph_of(unets, "fp16") if node.op_type != "Cast" and floats(node)]
    assert {island_of(node) for node in nodes} == {"", "time_embedding", "statistics", "attention"}
    assert all(floats(node) == {FLOAT} for node in nodes if island_of(node))
    outside = [node for node in nodes if not island_of(node) and node.op_type != "Shape"]
    # A Resize takes its factors in fp32, whatever it resizes.
    assert all(floats(node) == {HALF} for node in outside if node.op_type != "Resize")
    assert {"Conv", "Gemm", "MatMul", "LayerNormalization"} <= {node.op_type for node in outside}
    assert not {"InstanceNormalization", "Softmax", "Sin", "Cos"} & {node.op_type for node in outside}


def test_layer_norms_take_their_statistics_in_fp32_by_themselves(unets: Unets) -> None:
    norms = [node for node in graph_of(unets, "fp16") if node.op_type == "LayerNormalization"]
    assert norms
    assert all("stash_type" not in n.attributes or n.attributes["stash_type"].as_int() == 1 for n in norms)


def test_queries_keys_and_values_are_raised_around_whole_attentions(unets: Unets) -> None:
    inside = [node for node in graph_of(unets, "fp16") if island_of(node) == "attention"]
    softmaxes = [node for node in inside if node.op_type == "Softmax"]
    casts = [node.outputs[0].dtype for node in inside if node.op_type == "Cast"]
    assert casts.count(FLOAT) == 3 * len(softmaxes) > 0
    assert casts.count(HALF) == len(softmaxes)
    for softmax in softmaxes:
        logits = maker(softmax.inputs[0])
        (output,) = softmax.outputs[0].consumers()
        assert [logits.op_type, output.op_type] == ["MatMul", "MatMul"]
        # Scaled before the first product, not after it.
        assert [maker(value).op_type for value in logits.inputs] == ["Mul", "Mul"]


def test_no_value_is_cast_twice_or_there_and_back(unets: Unets) -> None:
    graph = graph_of(unets, "fp16")
    inputs = set(graph.inputs)
    casts = [node for node in graph if node.op_type == "Cast" and floats(node) == {HALF, FLOAT}]
    assert len({(node.inputs[0], node.outputs[0].dtype) for node in casts}) == len(casts) > 0
    assert not set(casts) & {maker(node.inputs[0]) for node in casts if node.inputs[0] not in inputs}


def test_islands_cost_no_accuracy(unets: Unets) -> None:
    outputs = {}
    for precision in ("fp32", "fp16"):
        component, folder = unets[precision]
        feeds = {name: tensor.numpy() for name, tensor in example_inputs(component.inputs, SIZES).items()}
        (outputs[precision],) = open_runner(component, folder, "cpu").infer(feeds).values()
    assert np.abs(outputs["fp16"] - outputs["fp32"]).max() < 0.01 * outputs["fp32"].std()


def test_a_resize_in_bf16_is_raised(unets: Unets) -> None:
    resizes = [node for node in graph_of(unets, "bf16") if node.op_type == "Resize"]
    assert {island_of(node) for node in resizes} == {"resize"}


def test_sdxls_conditions_are_joined_in_one_type(tmp_path: Path) -> None:
    """The sinusoids of sizes are fp32, and the tracer would join them to fp16 as they are."""
    network = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    sample = TensorSpec("sample", "float32", ("rows", 4, "height", "width"))
    inputs = (
        sample,
        TensorSpec("timestep", "float32", ("rows",)),
        TensorSpec("encoder_hidden_states", "float32", ("rows", "tokens", 8)),
        TensorSpec("text_embeds", "float32", ("rows", 16)),
        TensorSpec("time_ids", "float32", ("rows", 6)),
    )
    plan, path = plan_for("sdxl", "unet", "fp16"), tmp_path / "unet.onnx"
    raised = export_onnx(
        Unet(network.half().eval()), inputs, (TensorSpec("out_sample", "float32", sample.shape),), path, plan
    )
    onnx.checker.check_model(str(path), full_check=True)
    # Two sinusoids of eight nodes, two embeddings of four.
    assert raised["time_embedding"] == 24


def value(name: str, dtype: ir.DataType = HALF) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape([2]), type=ir.TensorType(dtype))


def small(operators: list[str], *, weight: bool = False) -> ir.Model:
    """Half-precision operators in a row between fp32 edges, each adding or multiplying one shared weight."""
    start, end = value("start", FLOAT), value("end", FLOAT)
    shared = value("network.weight")
    shared.const_value = ir.tensor(np.array([1.5, -2], np.float16), name="network.weight")
    last, nodes = value("low"), []
    nodes.append(ir.node("Cast", [start], {"to": HALF}, outputs=[last], name="enter"))
    for index, operator in enumerate(operators):
        made = value(f"value_{index}")
        node = ir.node(operator, [last, shared] if weight else [last], outputs=[made], name=f"node_{index}")
        node.metadata_props[SCOPES] = repr(["", "network", f"network.part_{index}", operator.lower()])
        nodes.append(node)
        last = made
    nodes.append(ir.node("Cast", [last], {"to": FLOAT}, outputs=[end], name="leave"))
    initializers = [shared] if weight else []
    graph = ir.Graph([start], [end], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="small")
    return ir.Model(graph, ir_version=10)


def island(name: str, *scopes: str, operators: tuple[str, ...] = ()) -> Island:
    return Island(name, scopes, operators, "a test")


def test_scopes_name_the_module_and_the_operation() -> None:
    model = small(["Sigmoid"])
    assert [scope(node) for node in model.graph] == ["/", "network.part_0/sigmoid", "/"]


def test_neighbouring_casts_go() -> None:
    """An island between the edges needs no cast at all: what came from fp32 and goes there was never rounded."""
    model = small(["Sigmoid", "Tanh"])
    assert apply_plan(model, PrecisionPlan("fp16", (island("all", "network.*"),))) == {"all": 2}
    assert [node.op_type for node in model.graph if island_of(node) == "all"] == ["Sigmoid", "Tanh"]
    assert model.graph[0].inputs[0] is model.graph.inputs[0]
    assert {v.dtype for node in model.graph for v in node.outputs} == {FLOAT}


def test_a_node_belongs_to_the_first_island_that_claims_it() -> None:
    model = small(["Sigmoid", "Tanh", "Tanh"])
    plan = PrecisionPlan("fp16", (island("first", "*part_1/*"), island("second", "*", operators=("Tanh",))))
    assert apply_plan(model, plan) == {"first": 1, "second": 1}
    assert [node.name for node in model.graph if node.op_type != "Cast"] == [
        "node_0", "island/first/node_1", "island/second/node_2",
    ]  # fmt: skip


@pytest.mark.parametrize(("scopes", "names"), [
    (("network.*",), {"network.weight": FLOAT}),
    (("*part_1/*",), {"network.weight": HALF, "island/some/network.weight": FLOAT}),
])  # fmt: skip
def test_a_weight_is_there_in_each_type_that_is_needed(scopes: tuple[str, ...], names: dict[str, ir.DataType]) -> None:
    model = small(["Mul", "Add"], weight=True)
    apply_plan(model, PrecisionPlan("fp16", (island("some", *scopes),)))
    assert {name: v.dtype for name, v in model.graph.initializers.items()} == names
    for initializer in model.graph.initializers.values():
        assert initializer.const_value is not None
        assert initializer.const_value.numpy().tolist() == [1.5, -2]


def test_an_fp32_graph_is_only_marked() -> None:
    start, end = value("start", FLOAT), value("end", FLOAT)
    graph = ir.Graph(
        [start], [end], nodes=[ir.node("Sigmoid", [start], outputs=[end], name="s")], opset_imports={"": 20}
    )
    assert apply_plan(ir.Model(graph, ir_version=10), PrecisionPlan("fp32", (island("whole", "*"),))) == {"whole": 1}
    assert [(node.op_type, node.name) for node in graph] == [("Sigmoid", "island/whole/s")]
