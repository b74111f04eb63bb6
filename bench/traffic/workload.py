"""Workload files: what a load is made of, in YAML.

A value of the requests is written as one value, a list of values as likely as each other, a mapping from values to
their weights, or, where it is a number, as a range `{from: 10, to: 50}`. `bench/workloads` has examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.traffic.arrivals import Arrivals, Bursts, Ramp
from bench.traffic.mix import ALL_FACES, LEAVING, Size
from bench.traffic.spread import Spread, Weighted
from bench.traffic.tasks import NEEDS_MODEL, TASK_NAMES, Task
from bench.traffic.trace import read_trace, size_of
from bench.traffic.yaml_nodes import (
    Node,
    Reader,
    above_zero,
    numbers_of,
    one_of,
    one_or_more,
    part,
    real,
    spread_of,
    text,
    whole,
)
from server.errors import ServerError
from server.fields import FIELD_BY_NAME, Value

# Of eight chunks of 75, which is what the server takes.
MAX_WORDS = 600
MAX_CLIENTS = 100_000


@dataclass(frozen=True, slots=True)
class Workload:
    """What a file says; only what it says.

    Attributes:
        mix: fields of `bench.traffic.mix.Mix`.
        load: of a load's options, by their names.
        arrivals, concurrency: the points of a sweep, of one of the two kinds.
    """

    mix: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    arrivals: tuple[Arrivals, ...] = ()
    concurrency: tuple[int, ...] = ()


def read_workload(file: Path) -> Workload:
    """The load that a file describes.

    Raises:
        ServerError: it cannot be read, is no YAML, or has a key or value that may not be; the sentence names the file,
            the key's path, what came and what is allowed.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"{file} cannot be read: {error}; give a YAML file, as in bench/workloads") from None
    except yaml.YAMLError as error:
        raise ServerError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    parts = Node(file, "", content).keys((*MIX_KEYS, "cancel", "arrivals", "load"))
    mix = {MIX_KEYS[name][0]: MIX_KEYS[name][1](node) for name, node in parts.items() if name in MIX_KEYS}
    mix |= _cancel(parts["cancel"]) if "cancel" in parts else {}
    load = parts["load"].keys(LOAD_KEYS) if "load" in parts else {}
    arrivals, concurrency = _arrivals(parts["arrivals"]) if "arrivals" in parts else ((), ())
    if mix.get("cancel_share", 0) + mix.get("malformed_share", 0) > 1:
        raise parts["cancel"].under(".share", mix["cancel_share"]).wrong("a part of 1 that leaves room for malformed")
    return Workload(mix, {name: LOAD_KEYS[name](node) for name, node in load.items()}, arrivals, concurrency)


def _field(name: str) -> Reader:
    """Reads a value of a request's field."""
    known = FIELD_BY_NAME[name]
    if known.choices:
        return one_of(known.choices)
    if known.datatype == "STRING":
        return text
    assert known.low is not None
    assert known.high is not None
    return whole(known.low, known.high) if known.datatype == "INT64" else real(known.low, known.high)


def _size(node: Node) -> Size:
    try:
        return size_of(str(node.value))
    except ValueError:
        raise node.wrong("a side such as 192, or height x width such as 128x192, in pixels") from None


def _clients(node: Node) -> Any:
    return whole(0, MAX_CLIENTS)(node) if isinstance(node.value, int) else spread_of(node, text)


def _tasks(node: Node) -> Spread[Task]:
    read = [_task(one) for one in one_or_more(node)]
    return Weighted(tuple(task for task, _ in read), tuple(weight for _, weight in read))


def _task(node: Node) -> tuple[Task, float]:
    if isinstance(node.value, str):
        node = node.under("", {"name": node.value})
    found = node.keys(("name", "model", "weight", "fields"))
    if "name" not in found:
        raise node.wrong(f"a name, one of {', '.join(TASK_NAMES)}")
    name = one_of(TASK_NAMES)(found["name"])
    model = text(found["model"]) if "model" in found else ""
    if name in NEEDS_MODEL and not model:
        raise node.wrong("the `model` that does it too, by its name in the server")
    fields = found["fields"].keys(tuple(FIELD_BY_NAME)) if "fields" in found else {}
    more: dict[str, Value] = {key: _field(key)(value) for key, value in fields.items()}
    return Task(name, model, more), above_zero(found["weight"]) if "weight" in found else 1.0


def _cancel(node: Node) -> dict[str, Any]:
    readers: dict[str, tuple[str, Reader]] = {
        "share": ("cancel_share", part),
        "within": ("leave_within", above_zero),
        "endings": ("endings", lambda one: spread_of(one, one_of(LEAVING))),
    }
    return {readers[name][0]: readers[name][1](one) for name, one in node.keys(readers).items()}


def _arrivals(node: Node) -> tuple[tuple[Arrivals, ...], tuple[int, ...]]:
    """Of a mapping with `process` and what belongs to it; several rates, or numbers of clients, are a sweep."""
    process = one_of(tuple(PROCESSES))(node.keys(tuple(_all_keys())).get("process", node.under(".process", None)))
    found = node.keys(("process", *PROCESSES[process]))
    if missing := [name for name in PROCESSES[process] if name not in (*found, *OPTIONAL)]:
        raise node.wrong(f"{missing[0]} too, since process is {process}")
    if process == "closed":
        return (), tuple(whole(1, MAX_CLIENTS)(clients) for clients in one_or_more(found["concurrency"]))
    if process == "ramp":
        return (Ramp(*(above_zero(found[name]) for name in ("from", "to", "seconds"))),), ()
    if process == "trace":
        speed = above_zero(found["speed"]) if "speed" in found else 1.0
        return (read_trace(node.file.parent / text(found["file"]), speed),), ()
    variation = above_zero(found["cv"]) if "cv" in found else 1.0
    return tuple(Bursts(above_zero(rate), variation) for rate in one_or_more(found["rate"])), ()


def _all_keys() -> dict[str, None]:
    return dict.fromkeys(["process", *(name for names in PROCESSES.values() for name in names)])


PROCESSES: dict[str, tuple[str, ...]] = {
    "closed": ("concurrency",),
    "poisson": ("rate",),
    "gamma": ("rate", "cv"),
    "ramp": ("from", "to", "seconds"),
    "trace": ("file", "speed"),
}
OPTIONAL = ("speed",)


def _numbers_of(name: str) -> Reader:
    return lambda node: numbers_of(node, _field(name))


def _choices_of(name: str) -> Reader:
    return lambda node: spread_of(node, _field(name))


# Where a key of a file goes in a mix, and how it is read.
MIX_KEYS: dict[str, tuple[str, Reader]] = {
    "seed": ("seed", whole(0, 2**63 - 1)),
    "face": ("faces", lambda node: spread_of(node, one_of(ALL_FACES))),
    "task": ("tasks", _tasks),
    "steps": ("steps", _numbers_of("num_inference_steps")),
    "sampler": ("samplers", _choices_of("sampler")),
    "guidance": ("guidance", _numbers_of("guidance_scale")),
    "size": ("sizes", lambda node: spread_of(node, _size)),
    "images": ("images", _numbers_of("num_images")),
    "format": ("formats", _choices_of("output_format")),
    "prompt_words": ("prompt_words", lambda node: numbers_of(node, whole(1, MAX_WORDS))),
    "clients": ("clients", _clients),
    "priority": ("priorities", _numbers_of("priority")),
    "timeout_ms": ("timeouts_ms", _numbers_of("timeout_ms")),
    "preview_interval": ("preview_interval", _field("preview_interval")),
    "malformed": ("malformed_share", part),
}
# As the command's options are called.
LOAD_KEYS: dict[str, Reader] = {
    "requests": whole(1, 10**7),
    "duration": above_zero,
    "warm_up": whole(0, 10**6),
    "repeats": whole(1, 1000),
    "connections": whole(1, 1000),
    "processes": whole(1, 64),
    "limit": above_zero,
    "slo_ms": above_zero,
}


def settings(value: Any) -> Any:
    """A mix or a part of one as plain data, as results keep it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: settings(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): settings(one) for name, one in value.items()}
    return [settings(one) for one in value] if isinstance(value, list | tuple) else value
