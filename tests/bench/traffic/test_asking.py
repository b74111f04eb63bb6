"""What becomes of one request."""

from __future__ import annotations

from dataclasses import replace

from bench.traffic.asking import mismatch, status_of
from bench.traffic.mix import Mix
from server.errors import Cancelled, Overloaded, ServerError
from server.forwarding import GONE
from server.protocol import Disconnected
from server.reply import Reply
from server.request import Limits, Request


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


def test_a_sampler_may_be_asked_by_another_name() -> None:
    asked = replace(Mix().asked(0), fields={**Mix().asked(0).fields, "sampler": "DPM++ 2M"})
    assert mismatch({"request": {**asked.fields, "sampler": "dpmpp_2m"}}, 1, asked) == ""


def test_metadata_that_says_nothing_is_noticed() -> None:
    assert "does not say what was drawn" in mismatch({}, 1, Mix().asked(0))
    assert "does not say what was drawn" in mismatch({"request": "x"}, 1, Mix().asked(0))
