"""Which parts of which components stay in fp32."""

from typing import get_args

import pytest

from engines.catalog import TENSORS
from engines.component import Family, Precision
from engines.precision import PrecisionPlan, plan_for

FAMILIES: tuple[Family, ...] = get_args(Family)


def names(plan: PrecisionPlan) -> set[str]:
    return {island.name for island in plan.islands}


@pytest.mark.parametrize("component", TENSORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_precision_has_no_islands(family: Family, component: str) -> None:
    assert plan_for(family, component, "fp32") == PrecisionPlan("fp32", ())


@pytest.mark.parametrize(
    ("family", "component", "precision", "dtype", "islands"),
    [
        ("sd1", "unet", "fp16", "fp16", {"time_embedding", "statistics"}),
        ("sd2", "unet", "fp16", "fp16", {"time_embedding", "statistics", "attention"}),
        ("sd2", "unet", "bf16", "bf16", {"time_embedding", "statistics", "resize"}),
        ("x4", "unet", "fp16", "fp16", {"time_embedding", "statistics"}),
        ("controlnet", "controlnet", "fp16", "fp16", {"time_embedding", "statistics"}),
        ("sd2", "vae_decoder", "fp16", "fp16", {"statistics"}),
        ("sdxl", "vae_decoder", "fp16", "fp32", {"whole"}),
        ("sdxl_refiner", "vae_encoder", "fp16", "fp32", {"whole"}),
        ("x4", "vae_decoder", "fp16", "fp32", {"whole"}),
        ("sdxl", "vae_decoder", "bf16", "bf16", {"statistics", "resize"}),
        ("sd2", "depth_estimator", "fp16", "fp32", {"whole"}),
        ("sdxl", "text_encoder_2", "fp16", "fp16", set()),
    ],
)
def test_half_precision_keeps_what_overflows_in_fp32(
    family: Family, component: str, precision: Precision, dtype: str, islands: set[str]
) -> None:
    plan = plan_for(family, component, precision)
    assert (plan.dtype, names(plan)) == (dtype, islands)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("component", TENSORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_island_has_a_name_of_its_own_and_a_reason(family: Family, component: str, precision: Precision) -> None:
    islands = plan_for(family, component, precision).islands
    assert len({island.name for island in islands}) == len(islands)
    assert all(island.reason and island.scopes for island in islands)
