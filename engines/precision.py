"""In which type every part of a component computes, as data: one type for most of it, islands in fp32.

TensorRT 11 is strongly typed and has no precision flags, so a plan is written into the graph (`export.graph`).
LayerNormalization needs no island: ONNX has it take its statistics in fp32 (`stash_type` is 1), and so do compilers.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.component import Precision


@dataclass(frozen=True, slots=True)
class Island:
    """Nodes that compute in fp32 while the graph around them does not.

    Attributes:
        name: each node of it is called `island/<name>/...` in the graph.
        scopes: shell patterns for `<path of the module>/<traced operation>`.
        operators: ONNX operators; empty means all.
        reason: what goes wrong without it.
    """

    name: str
    scopes: tuple[str, ...]
    operators: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """The type that a component's network is traced in, weights included, and what is raised to fp32 afterwards."""

    dtype: Precision
    islands: tuple[Island, ...] = ()


TIME = Island(
    "time_embedding",
    ("network.*time_proj/*", "network.*time_embedding*", "network.add_embedding*"),
    (),
    "the angles of the sinusoid reach 999, where neighbours in half precision lie half a radian apart",
)
STATISTICS = Island(
    "statistics",
    ("*",),
    ("InstanceNormalization",),
    "the variance of a group squares its values: from 256 on, squares exceed fp16",
)
# TensorRT 11.3 and later take the pattern of raised queries, keys and values for attention that is fused and
# accumulates in fp32 (release notes of 11.3.0). The tracer multiplies both by the root of the scale beforehand.
ATTENTION = Island(
    "attention",
    ("*attn?/scaled_dot_product_attention*",),
    ("Mul", "MatMul", "Softmax"),
    "products of Stable Diffusion 2's queries and keys exceed fp16",
)
RESIZE = Island("resize", ("*",), ("Resize",), "TensorRT has no Resize in bf16")
WHOLE = Island("whole", ("*",), (), "its values leave the range of fp16")

# By component; the others have no island.
ISLANDS = {
    "unet": (TIME, STATISTICS),
    "controlnet": (TIME, STATISTICS),
    "vae_encoder": (STATISTICS,),
    "vae_decoder": (STATISTICS,),
}
# By (family, component), in fp16. Stable Diffusion 2 computes attention in fp32 itself (`upcast_attention`).
OVERFLOWING = {("sd2", "unet")}
# SDXL's VAE gives NaN in fp16, the upscaler's breaks as well, and the depth estimator normalises its own weights.
WHOLLY_FP32 = {
    *((family, vae) for family in ("sdxl", "sdxl_refiner", "x4") for vae in ("vae_encoder", "vae_decoder")),
    ("sd2", "depth_estimator"),
}


def plan_for(family: str, component: str, precision: Precision) -> PrecisionPlan:
    """How a component of a checkpoint family computes when it is exported in `precision`; int8 comes out of fp32."""
    islands = ISLANDS.get(component, ())
    if precision in ("fp32", "int8"):
        return PrecisionPlan("fp32")
    if precision == "bf16":
        return PrecisionPlan("bf16", (*islands, RESIZE))
    if (family, component) in WHOLLY_FP32:
        return PrecisionPlan("fp32", (WHOLE,))
    return PrecisionPlan("fp16", (*islands, ATTENTION) if (family, component) in OVERFLOWING else islands)
