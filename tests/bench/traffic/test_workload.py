"""Workload files: what they may say, and how they are told that they may not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.traffic.arrivals import Bursts, Ramp, Trace
from bench.traffic.mix import Mix
from bench.traffic.spread import Between, Weighted
from bench.traffic.tasks import Task
from bench.traffic.workload import Workload, read_workload, settings
from server.errors import ServerError

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "bench" / "workloads").glob("*.yaml"))


def read(folder: Path, text: str) -> Workload:
    file = folder / "load.yaml"
    file.write_text(text, encoding="utf-8")
    return read_workload(file)


def test_every_form_of_a_value(tmp_path: Path) -> None:
    workload = read(
        tmp_path,
        """
        steps: {from: 10, to: 50}
        sampler: {euler: 3, ddim: 1}
        guidance: [1, 7.5]
        size: [128, 128x192]
        face: {unary: 1, http: 1}
        task:
          - txt2img
          - {name: inpainting, model: masked, weight: 2, fields: {strength: 0.5}}
        clients: {ann: 2, bob: 1}
        cancel: {share: 0.25, within: 2, endings: id}
        malformed: 0.5
        load: {duration: 5, slo_ms: 300}
        """,
    )
    assert workload.mix == {
        "steps": Between(10, 50),
        "samplers": Weighted(("euler", "ddim"), (3.0, 1.0)),
        "guidance": (1.0, 7.5),
        "sizes": (128, (128, 192)),
        "faces": Weighted(("unary", "http"), (1.0, 1.0)),
        "tasks": Weighted((Task("txt2img"), Task("inpainting", "masked", {"strength": 0.5})), (1.0, 2.0)),
        "clients": Weighted(("ann", "bob"), (2.0, 1.0)),
        "cancel_share": 0.25,
        "leave_within": 2.0,
        "endings": ("id",),
        "malformed_share": 0.5,
    }
    assert workload.load == {"duration": 5.0, "slo_ms": 300.0}
    json.dumps(settings(Mix(**workload.mix)))


def test_values_come_as_often_as_they_weigh(tmp_path: Path) -> None:
    mix = Mix(**read(tmp_path, "steps: {4: 3, 20: 1}\nguidance: {from: 2.5, to: 3.5}\nprompt_words: [3, 90]").mix)
    requests = list(mix.requests(2000))
    steps = Counter(one.kind.steps for one in requests)
    assert steps[4] / 2000 == pytest.approx(0.75, abs=0.03)
    scales = [float(str(one.fields["guidance_scale"])) for one in requests]
    assert min(scales) >= 2.5
    assert max(scales) <= 3.5
    assert len(set(scales)) > 500
    assert {one.kind.guidance for one in requests} == {3.5}
    assert {len(str(one.fields["prompt"]).split()) for one in requests} == {3, 90}


def test_every_way_to_arrive(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("time\n5\n7\n")
    ways = {
        "{process: closed, concurrency: [1, 8]}": ((), (1, 8)),
        "{process: poisson, rate: [2, 4.5]}": ((Bursts(2.0), Bursts(4.5)), ()),
        "{process: gamma, rate: 2, cv: 3}": ((Bursts(2.0, 3.0),), ()),
        "{process: ramp, from: 1, to: 9, seconds: 60}": ((Ramp(1.0, 9.0, 60.0),), ()),
    }
    for text, expected in ways.items():
        workload = read(tmp_path, f"arrivals: {text}")
        assert (workload.arrivals, workload.concurrency) == expected
    (trace,) = read(tmp_path, "arrivals: {process: trace, file: day.csv, speed: 2}").arrivals
    assert isinstance(trace, Trace)
    assert trace.times(0) == [0.0, 1.0]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_good(file: Path) -> None:
    workload = read_workload(file)
    assert workload.arrivals or workload.concurrency
    requests = list(Mix(**workload.mix).requests(100))
    assert len({one.kind for one in requests}) > 1 or workload.load.get("slo_ms")


def test_the_examples_have_all_tasks() -> None:
    assert len(EXAMPLES) >= 3
    mix = Mix(**read_workload(next(file for file in EXAMPLES if file.stem == "tasks")).mix)
    tasks = {one.kind.task.split()[0] for one in mix.requests(200)}
    assert tasks == {"txt2img", "img2img", "inpainting", "outpainting", "depth", "hires"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "load.yaml is None: give a mapping"),
        ("[1, 2]", "is [1, 2]: give a mapping"),
        ("steps: [1, 2", "is no YAML"),
        ("step: 3", "step is no key of a workload; give seed, face"),
        ("steps: many", "steps is 'many': give an integer from 1 to 500"),
        ("steps: 0", "steps is 0: give an integer from 1 to 500"),
        ("steps: true", "steps is True"),
        ("steps: []", "steps is []: give a list with at least one value"),
        ("steps: [4, x]", "steps[1] is 'x': give an integer"),
        ("steps: {4: 0}", "steps.4 is 0: give a number above 0"),
        ("steps: {4: -1, 8: 1}", "steps.4 is -1"),
        ("steps: {}", "steps is {}: give an integer"),
        ("steps: {from: 9, to: 3}", "give a range whose from is not above its to"),
        ("steps: {from: 9}", "give both from and to"),
        ("guidance: .nan", "guidance is nan: give a number from 0 to 100"),
        ("sampler: best", "sampler is 'best': give one of euler"),
        ("size: big", "size is 'big': give a side such as 192"),
        ("size: 0", "size is 0"),
        ("face: fax", "face is 'fax': give one of unary, stream, http"),
        ("task: draw", "is 'draw': give one of txt2img"),
        ("task: [{name: depth}]", "task[0] is {'name': 'depth'}: give the `model`"),
        ("task: [{name: img2img, fields: {streng: 1}}]", "task[0].fields.streng is no key"),
        ("task: [{name: img2img, fields: {strength: 2}}]", "task[0].fields.strength is 2: give a number from 0 to 1"),
        ("cancel: {share: 1.5}", "cancel.share is 1.5: give a number from 0 to 1"),
        ("cancel: {share: 0.7}\nmalformed: 0.6", "cancel.share is 0.7: give a part of 1"),
        ("arrivals: {rate: 3}", "arrivals.process is None: give one of closed"),
        ("arrivals: {process: poisson}", "rate too, since process is poisson"),
        ("arrivals: {process: poisson, rate: 0}", "arrivals.rate is 0: give a number above 0"),
        ("arrivals: {process: poisson, rate: [1, -2]}", "arrivals.rate[1] is -2"),
        ("arrivals: {process: poisson, rate: 1, cv: 2}", "arrivals.cv is no key"),
        ("arrivals: {process: closed, concurrency: 0}", "arrivals.concurrency is 0"),
        ("arrivals: {process: closed, concurrency: {1: 2}}", "arrivals.concurrency is {1: 2}: give an integer"),
        ("arrivals: {process: trace, file: none.csv}", "none.csv cannot be read as a trace"),
        ("load: {requests: 1.5}", "load.requests is 1.5: give an integer"),
        ("load: {pace: 3}", "load.pace is no key"),
    ],
)
def test_a_bad_file_is_told_with_the_path_of_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ServerError) as told:
        read(tmp_path, text)
    assert str(tmp_path) in str(told.value)
    assert message in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read"):
        read_workload(tmp_path / "none.yaml")
