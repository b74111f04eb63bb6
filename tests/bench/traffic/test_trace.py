"""Recorded loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.traffic.mix import Given, Mix
from bench.traffic.trace import read_trace
from server.errors import ServerError


def written(folder: Path, text: str) -> Path:
    file = folder / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_trace_says_when_requests_came_and_what_they_asked(tmp_path: Path) -> None:
    lines = (
        "time,steps,sampler,guidance,size,prompt,client_id",
        '12.5,30,ddim,1.0,128x192,"a ring, red",ann',
        "10,4,,,192,,",
        "11,,,,,,",
    )
    trace = read_trace(written(tmp_path, "\n".join(lines)), speed=0.5)
    assert trace.times(0) == [0.0, 2.0, 5.0]
    assert trace.given() == (
        Given(steps=4, size=192),
        Given(),
        Given(steps=30, size=(128, 192), sampler="ddim", guidance=1.0, prompt="a ring, red", client_id="ann"),
    )
    first, second, third = Mix(steps=(7,), clients=2).requests(3, trace.given())
    assert (first.fields["num_inference_steps"], second.fields["num_inference_steps"]) == (4, 7)
    assert (third.fields["height"], third.fields["width"], third.fields["prompt"]) == (128, 192, "a ring, red")
    assert (third.fields["client_id"], third.fields["guidance_scale"], third.kind.sampler) == ("ann", 1.0, "ddim")


def test_moments_may_be_dates(tmp_path: Path) -> None:
    text = "time\n2026-01-31T08:00:00Z\n2026-01-31T08:00:00.250Z\n2026-01-31T09:00:02+01:00\n"
    assert read_trace(written(tmp_path, text)).times(0) == [0.0, 0.25, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one must be time"),
        ("seconds\n1\n", "has the columns seconds: one must be time"),
        ("time,colour\n1,red\n", "has a column 'colour': give only time, steps"),
        ("time\n", "has no requests"),
        ("time\nsoon\n", "line 2: time is 'soon': give seconds, or a moment"),
        ("time\nnan\n", "line 2: time is 'nan'"),
        ("time\n0\n1e999\n", "line 3: time is '1e999'"),
        ("time,steps\n1,20\n2,0\n", "line 3: steps is '0': give an integer from 1 to 500"),
        ("time,steps\n1,many\n", "line 2: steps is 'many'"),
        ("time,guidance\n1,nan\n", "line 2: guidance is 'nan'"),
        ("time,size\n1,128x\n", "line 2: size is '128x': give a side such as 192"),
        ("time,sampler\n1,best\n", "line 2: sampler is 'best': give one of euler"),
        ("time,steps\n1\n", "line 2 has not as many cells"),
        ("time\n1,2\n", "line 2 has not as many cells"),
        ("time\n1\n2026-01-31\n", "has seconds and dates"),
    ],
)
def test_a_bad_trace_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ServerError, match=r"trace\.csv") as told:
        read_trace(written(tmp_path, text))
    assert message in str(told.value)


def test_a_trace_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read as a trace"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ServerError, match="cannot be read as a trace"):
        read_trace(tmp_path / "bytes.csv")
