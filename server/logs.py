"""Log lines with the same fields for machines (JSON) and for people (text)."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from server.errors import StartupError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _time(record: logging.LogRecord) -> str:
    """When it was logged, in UTC, as ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _on_one_line(text: str) -> str:
    """What a client sent may be part of a message; it must not look like a line of its own or move the cursor."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode("ascii") for char in text
    )


class _Formatter(logging.Formatter):
    def fields(self, record: logging.LogRecord) -> dict[str, str]:
        """What both formats tell; `request_id` and `exception` only where there is one."""
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            fields["request_id"] = str(request_id)
        trace = [self.formatException(record.exc_info)] if record.exc_info else []
        trace += [self.formatStack(record.stack_info)] if record.stack_info else []
        if trace:
            fields["exception"] = "\n".join(trace)
        return fields


class JsonFormatter(_Formatter):
    """One JSON object per line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record))


class TextFormatter(_Formatter):
    """One line per message; tracebacks follow on lines of their own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: _on_one_line(text) for name, text in self.fields(record).items() if name != "exception"}
        request = f" [{fields['request_id']}]" if "request_id" in fields else ""
        line = f"{fields['time']} {fields['level']} {fields['logger']}{request}: {fields['message']}"
        trace = self.fields(record).get("exception", "")
        return "\n    ".join([line, *(_on_one_line(part) for part in trace.splitlines())])


def configure(level: str = "INFO", *, json: bool = False) -> None:
    """Send everything that is logged to standard error, in place of what was configured here before.

    Raises:
        StartupError: there is no such level.
    """
    if level.upper() not in LEVELS:
        raise StartupError(f"log level is {level!r}; use one of {', '.join(LEVELS).lower()}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root = logging.getLogger()
    for other in list(root.handlers):
        if isinstance(other.formatter, _Formatter):
            root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level.upper())
