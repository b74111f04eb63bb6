"""`python -m bench`: measurements and what reads their results; the last line of standard output is one JSON object."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import (
    capacity,
    compare,
    demo,
    figures,
    goodput,
    harness,
    host,
    latency,
    mlperf,
    offline,
    online,
    picture,
    placement,
    quality,
    report,
    samplers,
    soak,
)
from bench.peers import program as peers
from bench.reporting import pages
from bench.reporting.reading import parsed
from bench.reporting.results import described, need_place, plain, tell
from engines.errors import EngineError
from server.errors import ServerError

PROGRAMS = {
    "demo": (demo, "the main job: a gallery through the real Triton"),
    "host": (host, "what tables, prompts and the moves between UNet calls cost"),
    "goodput": (goodput, "the load that is served in time, against static batches and one at a time"),
    "capacity": (capacity, "how many servers a load needs, by the real scheduler on a measured step curve"),
    "harness": (harness, "by how much bench online sends late, up to thousands of requests a second"),
    "online": (online, "load on a live server: latencies, throughput, goodput, errors"),
    "latency": (latency, "what the server adds, and how soon it reacts to cancellations, overload and deadlines"),
    "mlperf": (mlperf, "MLPerf's LoadGen drives the server: throughput, latency, VALID or not"),
    "placement": (placement, "what components cost as Triton models of their own"),
    "offline": (offline, "how long each component takes, over rows and sizes, and how much of the machine that is"),
    "picture": (picture, "a whole picture through Triton, over the engine calls that it is made of"),
    "peers": (peers, "whole pictures, or the UNet, against others on the same weights"),
    "soak": (soak, "thousands of requests with cancellations and kills: nothing lost, nothing leaked"),
    "samplers": (samplers, "schedules as curves, and one prompt across all samplers"),
    "quality": (quality, "whether the embedded checkpoint draws what is asked"),
}

# What reads results and measures nothing.
READERS = {
    "report": (report, "many results on one HTML page"),
    "compare": (compare, "what changed from one result to another beyond noise"),
    "figures": (figures, "README's performance section from the results that are kept"),
}

# As a shell has it for a program that SIGINT ended.
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 only if the measurement was made to its end, and found no `failures`.

    A program that is interrupted tells what it has, and is partial; one that has nothing yet raises KeyboardInterrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    program, _ = {**PROGRAMS, **READERS}[options.verb]
    page: Path | None = options.html if options.verb in PROGRAMS else None
    try:
        if page is not None:
            pages.require()
        for place in (options.json, page):
            need_place(place)
        result = described(options.verb, arguments[1:], program.run(options))
        tell(result, options.json)
        if page is not None:
            pages.write(page, [parsed(plain(result), options.verb)])
    except (ServerError, EngineError, OSError) as error:
        print(f"{options.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.verb}: interrupted before there was anything to tell", file=sys.stderr)
        return INTERRUPTED
    for failure in result.get("failures", ()):
        print(f"{options.verb}: {failure}", file=sys.stderr)
    return 1 if result["partial"] or result.get("failures") else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (program, meaning) in {**PROGRAMS, **READERS}.items():
        verb = verbs.add_parser(name, help=meaning, description=program.__doc__)
        program.add_options(verb)
        verb.add_argument("--json", type=Path, help="file to keep the result in")
        if name in PROGRAMS:
            verb.add_argument("--html", type=Path, help="file for a page of the result, with drawings")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
