"""server.logs: one record is one line, whatever a client put into it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import StartupError
from server.logs import JsonFormatter, TextFormatter, configure


def record(message: str, *arguments: object, **others: Any) -> logging.LogRecord:
    """A record of 2026-11-22 07:33:12.345 UTC."""
    extra = others.pop("extra", {})
    made = logging.LogRecord("server.loop", logging.WARNING, "loop.py", 1, message, arguments, others.get("exc_info"))
    made.stack_info = others.get("stack_info")
    made.created = 1795332792.345
    vars(made).update(extra)
    return made


def raised() -> Any:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        return sys.exc_info()


def test_json_has_all_fields() -> None:
    line = JsonFormatter().format(record("a call of %d rows", 16, extra={"request_id": "r-1"}, exc_info=raised()))
    fields = json.loads(line)
    assert "\n" not in line
    assert fields.pop("exception").endswith("ValueError: first\nsecond")
    assert fields == {
        "time": "2026-11-22T07:33:12.345Z",
        "level": "WARNING",
        "logger": "server.loop",
        "message": "a call of 16 rows",
        "request_id": "r-1",
    }
    assert datetime.fromisoformat(fields["time"]).timestamp() == 1795332792.345


def test_what_is_not_there_is_left_out() -> None:
    assert json.loads(JsonFormatter().format(record("m"))).keys() == {"time", "level", "logger", "message"}
    assert TextFormatter().format(record("m")) == "2026-11-22T07:33:12.345Z WARNING server.loop: m"


def test_text_has_the_same_fields() -> None:
    text = TextFormatter().format(record("m", extra={"request_id": 7}, exc_info=raised(), stack_info="Stack:\n  here"))
    first, *trace = text.split("\n")
    assert first == "2026-11-22T07:33:12.345Z WARNING server.loop [7]: m"
    assert all(line.startswith("    ") for line in trace)
    assert [line.strip() for line in (*trace[:1], *trace[-4:])] == [
        "Traceback (most recent call last):",
        "ValueError: first",
        "second",
        "Stack:",
        "here",
    ]


@given(st.text(), st.text())
def test_a_client_cannot_write_lines_of_its_own(message: str, request_id: str) -> None:
    made = record("%s", message, extra={"request_id": request_id})
    text, line = TextFormatter().format(made), JsonFormatter().format(made)
    assert text.isprintable()
    assert line.isprintable()
    assert line.isascii()
    assert (json.loads(line)["message"], json.loads(line)["request_id"]) == (message, request_id)
    text.encode()


def test_umlauts_stay_readable_for_people() -> None:
    assert TextFormatter().format(record("größe\tok\x1b[2J")).endswith(r": größe\tok\x1b[2J")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which is put back as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_configuring_again_replaces_what_was(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    others = list(root.handlers)
    configure("debug", json=True)
    configure("WARNING")
    configure("INFO", json=True)
    logger = logging.getLogger("server.test")
    logger.debug("too little")
    logger.info("one", extra={"request_id": "r"})
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["request_id"] == "r"
    assert len(root.handlers) == len(others) + 1


def test_unknown_level_is_told(root: logging.Logger) -> None:
    before = list(root.handlers)
    with pytest.raises(StartupError, match="log level is 'loud'; use one of debug, info, warning, error, critical"):
        configure("loud")
    assert root.handlers == before
