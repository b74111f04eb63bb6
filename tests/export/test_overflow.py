"""The probe: plain half precision breaks where an island holds, in torch as in the emulation; and its command."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.component import Component, PipelineSpec, Precision, file_sha256
from export.overflow import LIMIT, Finding, Reading, islands, main, probe, table

Unets = dict[Precision, tuple[Component, Path]]


@pytest.fixture(scope="module")
def findings(unets: Unets) -> dict[str, Finding]:
    component, folder = unets["fp16"]
    return {island: probe(component, folder, island) for island in islands(component, folder)}


def test_every_island_of_the_plan_is_probed(findings: dict[str, Finding]) -> None:
    assert set(findings) == {"attention", "statistics", "time_embedding"}


@pytest.mark.parametrize("island", ["attention", "statistics", "time_embedding"])
def test_what_breaks_without_an_island_agrees_with_fp32_with_it(findings: dict[str, Finding], island: str) -> None:
    first, *_, last = findings[island].readings
    assert last.without > LIMIT > 10 * first.without
    assert findings[island].holds
    assert max(reading.with_island for reading in findings[island].readings) < 0.02


def test_attention_breaks_by_infinite_products(findings: dict[str, Finding]) -> None:
    largest = np.finfo(np.float16).max
    last = findings["attention"].readings[-1]
    assert np.isinf(last.without)
    assert last.peak > largest > findings["attention"].readings[-2].peak


@pytest.mark.slow
def test_a_component_that_is_an_island_as_a_whole(whole_decoder: tuple[Component, Path]) -> None:
    component, folder = whole_decoder
    assert islands(component, folder) == ("whole",)
    finding = probe(component, folder, "whole")
    assert finding.readings[0].without < LIMIT
    assert finding.readings[-1].without > LIMIT
    # Nothing is rounded then.
    assert max(reading.with_island for reading in finding.readings) < 1e-4


def test_torch_overflows_at_the_same_products(findings: dict[str, Finding]) -> None:
    """One channel of queries and keys at the factor that broke the emulation, scaled by both roots, as traced."""
    for reading in findings["attention"].readings[-2:]:
        query, key = (torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(s)).half() for s in range(2))
        query[..., 0], key[..., 0] = reading.factor, reading.factor
        root = torch.tensor(16**-0.25).half()
        half = torch.softmax((query * root) @ (key * root).mT, -1)
        raised = torch.softmax((query.float() * root.float()) @ (key.float() * root.float()).mT, -1)
        assert torch.isfinite(raised).all()
        assert bool(torch.isfinite(half).all()) is bool(np.isfinite(reading.without))


@pytest.mark.parametrize(("error", "holds"), [(0.01, True), (np.inf, False), (np.nan, False)])
def test_an_island_holds_when_it_agrees_throughout(error: float, holds: bool) -> None:
    readings = (Reading(1, 2, 0.01, 0.01), Reading(4, 32, np.inf, error))
    assert Finding("unet", "attention", readings).holds is holds


def test_a_table_for_people() -> None:
    text = table(Finding("unet", "attention", (Reading(1024, 262000.4, np.inf, 0.00619),)), "a reason")
    assert text.splitlines()[0] == "unet, island attention: a reason"
    assert text.splitlines()[-1].split() == ["1024", "2.62e+05", "inf", "0.00619"]


@pytest.fixture
def half_export(unets: Unets, tiny_export: Path, tmp_path: Path) -> Path:
    component, folder = unets["fp16"]
    (tmp_path / component.file).write_bytes((folder / component.file).read_bytes())
    component = dataclasses.replace(component, sha256=file_sha256(tmp_path / component.file))
    spec = PipelineSpec.read(tiny_export)
    dataclasses.replace(spec, components={**spec.components, "unet": component}).write(tmp_path)
    return tmp_path


def test_the_command_prints_a_table(half_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(half_export), "--island", "statistics"]) == 0
    assert capsys.readouterr().out.startswith("unet, island statistics: the variance of a group squares its values")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--island", "softmax"], "unet has the islands attention, statistics, time_embedding, not softmax"),
        (["--component", "vae"], "has no component 'vae'"),
        (["--component", "vae_decoder"], "vae_decoder.onnx is missing or damaged; run `python -m export` again"),
        (["--side", "12"], "latents of 12x12 do not fit; give --side a multiple of 8"),
    ],
)
def test_what_is_not_there_is_refused(
    half_export: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(half_export), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_graph_without_islands_has_nothing_to_probe(tiny_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_export)]) == 1
    assert "unet has no islands; export it with --precision fp16 or bf16" in capsys.readouterr().err
