"""`inspect` shows what plans were made from, and why some are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from engines.build import Order, build
from engines.errors import ArtefactError
from engines.inspect import Finding, findings, table
from engines.manifest import Machine
from engines.profiles import Rows


@pytest.fixture
def built(toy_export: Path) -> Path:
    """The export, with plans of the text encoder and the UNet at one resolution."""
    order = Order(
        components=("text_encoder", "unet"),
        resolutions=((64, 64),),
        rows={"unet": Rows(1, 2, 4)},
        capabilities=((8, 9), (12, 0)),
    )
    build(toy_export, order)
    return toy_export


def test_the_table_has_a_line_per_plan(built: Path) -> None:
    header, text_encoder, unet = table(findings(built)).splitlines()
    assert header.split() == ["plan", "rows", "type", "for", "options", "MiB", "seconds", "peak", "GiB", "state"]
    assert text_encoder.startswith("text_encoder-")
    assert [word in unet for word in ("unet-64x64-", "1:2:4", "fp16", "8.9+12.0", "level 3", "good")] == [True] * 6


def test_a_refused_plan_is_marked_and_its_reason_told(built: Path) -> None:
    plan = next(finding.plan for finding in findings(built) if finding.plan.name.startswith("unet"))
    plan.write_bytes(b"")
    [text_encoder, unet] = findings(built)
    assert (text_encoder.refusal, "is damaged" in unet.refusal) == ("", True)
    assert table([unet]).splitlines()[1].endswith("refused")
    assert table([unet]).splitlines()[2] == unet.refusal


def test_a_plan_for_another_gpu_is_refused_where_it_should_run(built: Path) -> None:
    version = findings(built)[0].manifest.recipe.version  # type: ignore[union-attr]
    here = Machine("tensorrt_rtx", version, (8, 6))
    assert all("for compute capability 8.9 and 12.0, this GPU has 8.6" in f.refusal for f in findings(built, here))
    assert not any(finding.refusal for finding in findings(built, replace(here, capability=(8, 9))))


def test_a_plan_whose_manifest_is_gone_is_shown_too(built: Path) -> None:
    plan = findings(built)[0].plan
    plan.with_suffix(".json").unlink()
    [finding] = findings(plan)
    assert (finding.manifest, "nobody knows" in finding.refusal) == (None, True)
    assert table([finding]).splitlines()[1].split() == [plan.name, "refused"]
    assert finding.to_json() == {"plan": str(plan), "refusal": finding.refusal, "manifest": None}


def test_what_was_given_up_is_told(built: Path) -> None:
    finding = findings(built)[1]
    assert finding.manifest is not None
    short = replace(finding.manifest, concessions=("at most 2 rows",))
    assert table([Finding(finding.plan, short, "")]).splitlines()[-1].endswith("memory was short: at most 2 rows")


def test_a_folder_without_plans_is_an_error_with_the_remedy(toy_export: Path) -> None:
    with pytest.raises(ArtefactError, match="make some with `python -m engines build"):
        findings(toy_export)
