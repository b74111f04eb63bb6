"""The process of a peer, without the process."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.peers.order import MissingPeerError, Order, Setup
from bench.peers.worker import Drawer, needed, serve

ORDER = Order(("a", "b"), (1, 2), steps=3, guidance=2.0, height=2, width=1)
SETUP = Setup("checkpoint", "fp32", "cpu", threads=1, work="", height=2, width=1, guidance=2.0)


class Painter:
    """Paints each picture in its seed; cannot paint 13."""

    def draw(self, order: Order) -> bytes:
        if 13 in order.seeds:
            raise RuntimeError("cannot paint\n  13")
        return b"".join(bytes([seed]) * (3 * order.height * order.width) for seed in order.seeds)


def answers(lines: list[dict[str, Any]], drawer: Drawer | Exception) -> list[dict[str, Any]]:
    def opened(setup: Setup) -> Drawer:
        assert setup == SETUP
        if isinstance(drawer, Exception):
            raise drawer
        return drawer

    told = io.StringIO()
    serve(opened, io.StringIO("".join(json.dumps(line) + "\n" for line in lines)), told)
    return [json.loads(line) for line in told.getvalue().splitlines()]


def test_orders_are_drawn_and_kept_on_request(tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    order = asdict(ORDER)
    found = answers([asdict(SETUP), {"order": order, "file": ""}, {"order": order, "file": str(file)}], Painter())
    assert [list(answer) for answer in found] == [["seconds"]] * 3
    assert file.read_bytes() == b"\1" * 6 + b"\2" * 6


def test_a_failure_is_told_and_the_next_order_drawn() -> None:
    spoilt = {**asdict(ORDER), "seeds": [1, 13]}
    lines = [asdict(SETUP), {"order": spoilt, "file": ""}, {"order": asdict(ORDER), "file": ""}]
    found = answers(lines, Painter())
    assert found[1] == {"error": "RuntimeError: cannot paint 13"}
    assert "seconds" in found[2]


@pytest.mark.parametrize(
    ("error", "told"),
    [(MissingPeerError("install it"), {"missing": "install it"}), (OSError("full"), {"error": "OSError: full"})],
)
def test_a_peer_that_does_not_open_draws_nothing(error: Exception, told: dict[str, str]) -> None:
    assert answers([asdict(SETUP), {"order": asdict(ORDER), "file": ""}], error) == [told]


def test_nothing_asked_is_nothing_told() -> None:
    assert answers([], Painter()) == []


def test_what_is_missing_is_told_with_its_remedy() -> None:
    assert needed("json", "no remedy") is json
    with pytest.raises(MissingPeerError, match=r"no_such_package cannot be imported .*: pip install it"):
        needed("no_such_package", "pip install it")


def test_an_order_goes_through_json_and_falls_into_its_pictures() -> None:
    assert Order.from_json(json.loads(json.dumps(asdict(ORDER)))) == ORDER
    assert [(one.prompts, one.seeds, one.steps) for one in ORDER.singles()] == [(("a",), (1,), 3), (("b",), (2,), 3)]
