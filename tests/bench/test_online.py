"""Loads without a server, the figures made of them, and one short load on a real one."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import online
from bench.__main__ import main
from bench.serving import accelerator_curve, mean_rows
from bench.traffic import loops, scrape, tally
from bench.traffic.asking import Outcome, Status, mismatch, status_of
from bench.traffic.latencies import milliseconds, percentile, slope
from bench.traffic.mix import FACES, MALFORMED, Asked, Mix
from server.async_client import Disconnected
from server.errors import Cancelled, InvalidRequest, Overloaded, ServerError
from server.forwarding import GONE
from server.reply import Reply
from server.request import Limits, Request

KIND = (20, "euler", 7.5, 128, 1)
MIXED = Mix(
    steps=(4, 20),
    samplers=("euler", "ddim"),
    guidance=(1.0, 7.5),
    faces=FACES,
    clients=3,
    cancel_share=0.3,
    malformed_share=0.2,
    preview_interval=2,
    images=(1, 2),
)


def outcome(number: int, seconds: float, status: Status = "ok", steps: int = 20, intended: float = 0.0) -> Outcome:
    asked = Asked(number, {}, (steps, *KIND[1:]))
    return Outcome(asked, status, intended, intended + 0.001, intended + seconds)


def arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    online.add_options(parser)
    return parser.parse_args(texts)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_percentiles_are_values_that_came(share: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value
    assert percentile([7.0], share) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="of 0 values"):
        percentile([], 0.5)
    assert milliseconds([]) == {"count": 0}


def test_figures_are_in_milliseconds() -> None:
    figures = milliseconds([0.001, 0.002, 0.003])
    assert (figures["count"], figures["mean"], figures["p50"], figures["p99"]) == (3, 2.0, 2.0, 3.0)
    assert (figures["min"], figures["max"]) == (1.0, 3.0)


def test_slope_of_a_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(1, 5)]) == slope([(1, 5), (1, 6)]) == 0


def test_arrivals_are_the_same_for_a_seed_and_have_their_rate() -> None:
    times = loops.poisson_times(50, 3, count=5000)
    assert times == loops.poisson_times(50, 3, count=5000) != loops.poisson_times(50, 4, count=5000)
    assert times == sorted(times)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.05)
    # Of an exponential distribution, the share below the mean is 1 - 1/e.
    assert sum(gap < 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)


def test_arrivals_end_by_count_or_by_time() -> None:
    assert max(loops.poisson_times(100, 0, seconds=2.0)) < 2.0
    assert len(loops.poisson_times(100, 0, count=7, seconds=2.0)) == 7
    with pytest.raises(ValueError, match="without end"):
        loops.poisson_times(100, 0)


def test_an_open_loop_sends_in_time_though_nothing_is_answered() -> None:
    times = [0.01 * n for n in range(20)]

    async def send(asked: Asked, intended: float) -> Outcome:
        sent = time.monotonic()
        await asyncio.sleep(0.3)
        return Outcome(asked, "ok", intended, sent, time.monotonic())

    begun = time.monotonic()
    outcomes = asyncio.run(loops.open_loop(Mix().requests(), times, send))
    assert [o.asked.number for o in outcomes] == list(range(20))
    assert [o.intended - outcomes[0].intended for o in outcomes] == pytest.approx(times)
    assert all(o.sent >= o.intended for o in outcomes)
    assert time.monotonic() - begun < 20 * 0.3 / 2


def test_latency_counts_from_the_intended_sending() -> None:
    """A client that comes late to send must not make the server look quick."""

    async def send(asked: Asked, intended: float) -> Outcome:
        time.sleep(0.02)
        return Outcome(asked, "ok", intended, time.monotonic(), time.monotonic())

    outcomes = asyncio.run(loops.open_loop(Mix().requests(), [0.0] * 5, send))
    assert [o.seconds >= 0.02 * (n + 1) - 0.001 for n, o in enumerate(outcomes)] == [True] * 5


def test_a_closed_loop_keeps_so_many_open() -> None:
    open_now, most = 0, 0

    async def send(asked: Asked, intended: float) -> Outcome:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001 * (asked.number % 3))
        open_now -= 1
        return Outcome(asked, "ok", intended, intended, time.monotonic())

    outcomes = asyncio.run(loops.closed_loop(Mix().requests(50), 4, send))
    assert most == 4
    assert [o.asked.number for o in outcomes] == list(range(50))


def test_a_closed_loop_ends_with_its_time() -> None:
    async def send(asked: Asked, intended: float) -> Outcome:
        await asyncio.sleep(0.01)
        return Outcome(asked, "ok", intended, intended, time.monotonic())

    outcomes = asyncio.run(loops.closed_loop(Mix().requests(), 2, send, seconds=0.1))
    assert 2 <= len(outcomes) <= 24


def test_a_mix_is_the_same_for_a_seed_and_has_its_shares() -> None:
    requests = [MIXED.asked(number) for number in range(2000)]
    assert requests == list(MIXED.requests(2000))
    assert requests[0] != replace(MIXED, seed=1).asked(0)
    assert sum(one.malformed for one in requests) / 2000 == pytest.approx(0.2, abs=0.03)
    endings = Counter(one.ending for one in requests)
    assert endings["answer"] / 2000 == pytest.approx(0.7, abs=0.03)
    assert min(endings[ending] for ending in ("cancel", "close", "id")) > 120
    assert {one.kind for one in requests} == set(MIXED.kinds)
    assert len({one.fields["client_id"] for one in requests}) == 3
    assert {"preview_interval" in one.fields for one in requests if one.face == "unary"} == {False}


def test_what_is_malformed_is_refused_and_nothing_else() -> None:
    limits = Limits(((128, 128), (192, 192)))

    def parse(one: Asked) -> Request:
        values = {name: v if isinstance(v, list) else [v] for name, v in one.fields.items()}
        return Request.parse(values, limits)

    requests = [MIXED.asked(number) for number in range(1000)]
    for one in requests:
        if one.malformed:
            with pytest.raises(InvalidRequest):
                parse(one)
        else:
            assert parse(one).num_inference_steps == one.kind[0]
    assert sum(one.malformed for one in requests) > 5 * len(MALFORMED)


def test_goodput_counts_what_was_in_time_for_its_steps() -> None:
    alone = {KIND: 1.0, (4, *KIND[1:]): 0.2}
    outcomes = [
        outcome(0, 1.4),
        outcome(1, 1.6),
        outcome(2, 4.9),
        outcome(3, 0.3, steps=4),
        outcome(4, 0.5, steps=4),
        outcome(5, 0.1, status="refused"),
        outcome(6, 10.0, status="expired"),
    ]
    assert tally.span(outcomes) == 10.0
    assert tally.goodputs(outcomes, alone) == {"1.5x": 0.2, "2x": 0.3, "3x": 0.4, "5x": 0.5}
    assert tally.images_per_second(outcomes) == 0.5
    assert tally.latencies(outcomes)["refused"]["p50"] == 100.0
    assert {steps: figures["count"] for steps, figures in tally.by_steps(outcomes).items()} == {"4": 2, "20": 3}


def test_no_outcomes_have_no_goodput() -> None:
    assert tally.images_per_second([]) == tally.goodput([], {}, 2.0) == 0.0


def test_every_request_has_exactly_one_outcome() -> None:
    asked = [Mix().asked(number) for number in range(4)]
    done = [Outcome(one, "ok", 0.0, 0.0, 1.0) for one in asked]
    assert tally.unaccounted(asked, done) == []
    assert tally.unaccounted(asked, done[:3]) == ["request 3 has 0 outcomes"]
    assert tally.unaccounted(asked, [*done, done[1]]) == ["request 1 has 2 outcomes"]
    assert tally.unaccounted(asked[:3], done) == ["request 3 was never asked"]


@pytest.mark.parametrize(
    ("changes", "status", "broken", "fine"),
    [
        ({}, "ok", False, True),
        ({}, "lost", True, False),
        ({}, "wrong", True, False),
        ({}, "error", True, False),
        ({}, "cancelled", False, False),
        ({}, "disconnected", False, False),
        ({}, "disconnected", True, True),
        ({"malformed": True}, "invalid", False, True),
        ({"malformed": True}, "ok", False, False),
        ({"ending": "id"}, "cancelled", False, True),
        ({"ending": "id"}, "ok", False, True),
        ({"ending": "close"}, "left", False, True),
        ({"ending": "close"}, "cancelled", False, False),
        ({"fields": {"timeout_ms": 5}}, "expired", False, True),
        ({"fields": {}}, "expired", False, False),
    ],
)
def test_what_may_become_of_a_request(changes: dict[str, Any], status: Status, broken: bool, fine: bool) -> None:
    asked = replace(Mix().asked(0), **changes)
    wrong = tally.unaccounted([asked], [Outcome(asked, status, 0.0, 0.0, 1.0)], broken=broken)
    assert (wrong == []) == fine


def test_errors_tell_what_became_of_a_request() -> None:
    class Deaf:
        def fail(self, error: ServerError) -> None:
            self.error = error

    sink = Deaf()
    request = Request.parse({"prompt": ["x"], "timeout_ms": [50]}, Limits(((64, 64),)))
    Reply(request, sink, lambda reply: None).expire()  # type: ignore[arg-type]
    hurried = replace(Mix().asked(0), fields={"timeout_ms": 50})
    # gRPC tells the code and the words of an error, but not its class.
    assert status_of(Overloaded(str(sink.error)), hurried) == "expired"
    assert status_of(Overloaded("timeout_ms is 50, but an image takes about 90 ms"), hurried) == "refused"
    assert status_of(Disconnected("Socket closed"), hurried) == "disconnected"
    assert status_of(Overloaded(f"{GONE}; send again in a moment"), hurried) == "disconnected"
    assert status_of(Cancelled("by id"), hurried) == "cancelled"
    assert status_of(ServerError("decoding failed"), hurried) == "error"


def test_an_answer_to_another_request_is_noticed() -> None:
    asked = Mix().asked(0)
    served = {"request": dict(asked.fields)}
    assert mismatch(served, 1, asked) == ""
    assert "2 images" in mismatch(served, 2, asked)
    assert "seed" in mismatch({"request": {**asked.fields, "seed": -1}}, 1, asked)
    assert "request_id" in mismatch({"request": {**asked.fields, "request_id": "load-9"}}, 1, asked)


def test_rows_per_call_are_weighted_by_calls() -> None:
    alone = {"unet_rows": 40, "unet_calls": 20}
    shared = {"unet_rows": 40, "unet_calls": 10}
    assert mean_rows([alone, shared]) == pytest.approx(80 / 30)
    assert mean_rows([]) is None


def test_metrics_are_read_and_compared() -> None:
    before = scrape.parse_metrics(
        '# HELP x y\naquatint_requests_total{outcome="ok"} 3\naquatint_running{bucket="64x64"} 2\n'
        'aquatint_running{bucket="128x128"} 1\nnv_other 5\n'
    )
    after = {**before, 'aquatint_requests_total{outcome="ok"}': 10.0, 'aquatint_requests_total{outcome="error"}': 1.0}
    assert scrape.total(before, "running") == 3
    assert scrape.total(before, "waiting") == 0
    assert scrape.grown(before, after) == {'requests_total{outcome="error"}': 1, 'requests_total{outcome="ok"}': 7}


def test_the_device_is_the_one_of_the_other_programs() -> None:
    (few, quick), (many, slow) = accelerator_curve("h100")
    assert (few, many) == (2, 16)
    assert [quick, slow] == pytest.approx([0.0115, 0.032], abs=1e-4)


def test_options_become_a_mix_and_a_load() -> None:
    options = arguments("--steps", "4,20", "--face", "both", "--rate", "5", "--duration", "3", "--timeout-ms", "100")
    mix, load = online.mix_of(options), online.load_of(options)
    assert (mix.steps, mix.faces, mix.timeouts_ms) == ((4, 20), FACES, (100,))
    assert (load.rate, load.concurrency, load.count, load.seconds) == (5.0, None, None, 3.0)
    assert online.load_of(arguments()).concurrency == 16


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--cancel-share", "0.7", "--malformed-share", "0.4"], "give parts of 1"),
        (["--rate", "-1"], "--rate is -1.0: give a number above 0"),
        (["--requests", "0"], "--requests is 0"),
        (["--url", "127.0.0.1:1", "--fake"], "give one of them"),
    ],
)
def test_bad_options_are_told_in_a_sentence(
    texts: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["online", *texts]) == 1
    assert message in capsys.readouterr().err


def test_no_server_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["online", "--url", "127.0.0.1:1", "--warm-up", "0"]) == 1
    assert "is the server running" in capsys.readouterr().err


@pytest.mark.triton
def test_a_short_load(fake_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "online.json"
    load = ["--fake", "--rate", "40", "--requests", "60", "--repeats", "1", "--warm-up", "4"]
    mix = ["--steps", "2,8", "--size", "64", "--face", "both", "--clients", "3", "--preview-interval", "2"]
    manners = ["--cancel-share", "0.2", "--cancel-within", "0.1", "--malformed-share", "0.1"]
    model = ["--model", str(fake_export), "--log", str(tmp_path / "log"), "--json", str(result)]
    assert main(["online", *load, *mix, *manners, *model]) == 0
    found = json.loads(result.read_text())
    assert found["unaccounted"] == []
    assert sum(found["outcomes"].values()) == 60
    assert found["outcomes"]["ok"] > 20
    assert found["outcomes"]["invalid"] == sum(one.malformed for one in _asked(mix, load, manners))
    assert set(found["alone_ms_by_steps"]) == {"2", "8"}
    assert found["mean_rows_per_unet_call"] >= 2
    assert found["first_preview_ms"]["count"] > 5
    assert found["server_counted"]['requests_total{outcome="ok"}'] >= found["outcomes"]["ok"]


@pytest.mark.triton
@pytest.mark.slow
def test_a_flood_of_refusals_breaks_nothing(fake_export: Path, tmp_path: Path) -> None:
    """Answers that come at once are the hardest for the threads of the unary model."""
    result = tmp_path / "online.json"
    load = ["--fake", "--requests", "6000", "--concurrency", "32", "--repeats", "1", "--warm-up", "0"]
    model = ["--size", "64", "--model", str(fake_export), "--log", str(tmp_path / "log"), "--json", str(result)]
    assert main(["online", *load, "--malformed-share", "1", *model]) == 0
    assert json.loads(result.read_text())["outcomes"] == {"invalid": 6000}


def _asked(*texts: Sequence[str]) -> list[Asked]:
    return list(online.mix_of(arguments(*(text for part in texts for text in part))).requests(60))
