"""Whole pictures: first whether a peer draws the same one, then how long it takes beside ours."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.offline import chosen_sizes
from bench.peers.contestant import Contestant, Load, fields_of, mixed_orders, prompt
from bench.peers.order import MissingPeerError, Order, Setup
from bench.peers.process import opened
from bench.peers.rounds import Rounds, interleaved
from bench.peers.servers import our_server, pattern_server
from bench.peers.told import SETTINGS, Compared, Setting, figures
from bench.peers.worker import MODULES
from bench.traffic.asking import Outcome
from bench.traffic.tally import span
from bench.triton_patterns.lockstep import Lockstep
from bench.triton_patterns.patterns import PATTERNS
from engines.component import PipelineSpec, Precision
from engines.errors import EngineError
from engines.providers import OPENVINO
from engines.runner import chosen_provider
from engines.verify import REFERENCE, arithmetic, psnr
from server.checkpoints import open_checkpoints
from server.config import ServerConfig
from server.errors import ServerError

PEERS = (*MODULES, *PATTERNS)
# In dB, of a picture by the same weights and seed. Some peers cut where others round, which alone leaves 53 of an fp32
# picture; what another schedule or another noise leaves is below 20.
LEAST_PSNR: Mapping[Precision, float] = {"fp32": 40.0, "fp16": 30.0, "bf16": 25.0, "int8": 20.0}
# Whoever computes in bf16 by name; others do as ours does.
PRECISIONS: Mapping[str, Precision] = {
    "diffusers_fp32": "fp32",
    "diffusers_bf16": "bf16",
    "compiled_bf16": "bf16",
    "stable_diffusion_cpp": "fp32",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn.

    Attributes:
        orders: of the settings `single` and `batch`; the first pictures are the same.
        load: gives that of a round.
    """

    settings: Sequence[Setting]
    orders: Mapping[Setting, Order]
    load: Callable[[int], Load]
    rounds: int
    even_if_different: bool


def run_pictures(options: argparse.Namespace) -> dict[str, Any]:
    """Each peer's ratio to ours in every setting, or why it has none.

    Raises:
        EngineError: numbers that are none, or an export that cannot be loaded or run.
        ServerError: our server does not start, or refuses.
    """
    spec = PipelineSpec.read(options.model)
    plan = plan_of(options, spec)
    provider = chosen_provider(options.provider)
    config = ServerConfig(options.model.resolve(), provider=provider, unet_threads=options.threads)
    ours_in = arithmetic(provider, spec.component("unet"), config.settings(spec.component("unet"), spec))
    expected = reference(config, plan.orders["single"])
    found: dict[str, Compared] = {}
    skipped: dict[str, str] = {}
    failures: list[str] = []
    partial = False
    with our_server(config, options.log) as ours:
        quality = Compared(ours_in, ours.open_seconds)
        check(ours, quality, plan, expected)
        if not quality.same:
            failures.append(f"ours draws another picture than fp32 on the CPU: {quality.psnr:.1f} dB from it")
        try:
            for name in options.peer or PEERS:
                print(f"{name} ...", file=sys.stderr, flush=True)
                try:
                    with contestant(name, options, config, plan.orders["single"], ours_in) as (peer, compared):
                        compare(ours, peer, compared, plan, expected)
                        found[name] = compared
                except MissingPeerError as error:
                    skipped[name] = str(error)
                except (EngineError, ServerError) as error:
                    failures.append(f"{name}: {error}")
        except KeyboardInterrupt:
            partial = True
    failures += [f"{name} was asked for: {why}" for name, why in skipped.items() if name in options.peer]
    return {
        "what": "pictures",
        "provider": provider,
        **figures(quality, found),
        "skipped": skipped,
        "failures": failures,
        "partial": partial,
        "settings": settings_of(options, plan),
    }


def plan_of(options: argparse.Namespace, spec: PipelineSpec) -> Plan:
    """What the options describe.

    Raises:
        EngineError: numbers that are none.
    """
    for name in ("steps", "repeats", "batch", "requests", "concurrency", "limit"):
        if getattr(options, name) <= 0:
            raise EngineError(f"--{name} is {getattr(options, name)}: give a number above 0")
    if options.guidance <= 1 or options.rate < 0:
        raise EngineError("--guidance must be above 1, where all peers draw with guidance, and --rate not below 0")
    if min(options.mix) < 1:
        raise EngineError(f"--mix is {','.join(map(str, options.mix))}: give numbers of steps, such as 4,20,50")
    height, width = chosen_sizes(options.size, spec, "--size")[0]
    draw = random.Random(options.seed)
    batch = Order(
        prompts=tuple(prompt(draw) for _ in range(options.batch)),
        seeds=tuple(range(options.seed, options.seed + options.batch)),
        steps=options.steps,
        guidance=options.guidance,
        height=height,
        width=width,
    )
    single = batch.singles()[0]

    def load(number: int) -> Load:
        seed = options.seed + number
        return Load(mixed_orders(single, options.mix, options.requests, seed), options.concurrency, options.rate, seed)

    settings = [setting for setting in SETTINGS if setting in (options.setting or SETTINGS)]
    return Plan(settings, {"single": single, "batch": batch}, load, options.repeats, options.even_if_different)


def settings_of(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """What a result depends on, as it was told."""
    order = plan.orders["single"]
    names = ("steps", "guidance", "batch", "mix", "requests", "concurrency", "rate", "repeats", "seed", "threads")
    return {"size": [order.height, order.width], **{name: getattr(options, name) for name in names}}


def reference(config: ServerConfig, order: Order) -> npt.NDArray[np.uint8]:
    """The picture of an order of one, (h, w, 3), in fp32 on the CPU.

    Raises:
        EngineError: the export cannot be run.
    """
    lockstep = Lockstep(open_checkpoints(replace(config, provider=REFERENCE, component_threads=0)))
    fields = fields_of(order)[0]
    sent = {name: [value.encode() if isinstance(value, str) else value] for name, value in fields.items()}
    return lockstep.draw([lockstep.parse(sent)])[0]


@contextlib.contextmanager
def contestant(
    name: str, options: argparse.Namespace, config: ServerConfig, order: Order, ours_in: Precision
) -> Iterator[tuple[Contestant, Compared]]:
    """A peer, loaded, until the block ends.

    Raises:
        MissingPeerError: something that it needs is not here.
        EngineError, ServerError: it failed while it was loaded.
    """
    precision = PRECISIONS.get(name, ours_in)
    if name in PATTERNS:
        with pattern_server(name, config, options.log.with_name(f"{name}.log")) as served:
            yield served, Compared(precision, served.open_seconds)
        return
    work = options.work / f"{name}-{PipelineSpec.read(options.model).fingerprint[:16]}"
    work.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        checkpoint=str(options.checkpoint.resolve()),
        precision="bf16" if precision == "bf16" else "fp32",
        device="cpu" if config.provider.startswith((REFERENCE, OPENVINO)) else "cuda",
        threads=options.threads or os.cpu_count() or 1,
        work=str(work.resolve()),
        height=order.height,
        width=order.width,
        guidance=order.guidance,
    )
    python = dict(options.peer_python).get(name, sys.executable)
    with opened(name, python, setup, options.log.with_name(f"{name}.log"), options.limit) as peer:
        yield peer, Compared(precision, peer.open_seconds)


def check(contestant: Contestant, compared: Compared, plan: Plan, expected: npt.NDArray[np.uint8]) -> None:
    """Draw each order once, which also warms up, and compare the first picture with the reference."""
    # The mixed load's pictures are like the single ones.
    wanted: list[Setting] = ["batch"] if "batch" in plan.settings else []
    found = []
    for setting in ("single", *wanted):
        drawn = contestant.draw(plan.orders[setting], keep=True)
        assert drawn.pixels is not None
        compared.first_seconds[setting] = drawn.seconds
        found.append(psnr(drawn.pixels[0], expected))
    compared.psnr = min(found)
    compared.same = compared.psnr >= LEAST_PSNR[compared.precision]


def compare(
    ours: Contestant, peer: Contestant, compared: Compared, plan: Plan, expected: npt.NDArray[np.uint8]
) -> None:
    """Check a peer, and time it beside ours if it draws the same picture."""
    check(peer, compared, plan, expected)
    if not compared.same and not plan.even_if_different:
        return
    for setting in plan.settings:
        if setting == "mixed":
            compared.rounds[setting] = _under_load(ours, peer, compared, plan)
        else:
            order = plan.orders[setting]
            turns = _timed(ours, order, peer.name), _timed(peer, order, peer.name)
            compared.rounds[setting] = interleaved(*turns, plan.rounds)


def unheard(order: Order, peer: str, number: int) -> Order:
    """The same with prompts of this peer's round alone: ours keeps the embeddings of late prompts, and peers do not."""
    return replace(order, prompts=tuple(f"{prompt}, {peer} {number}" for prompt in order.prompts))


def _timed(who: Contestant, order: Order, peer: str) -> Callable[[int], float]:
    return lambda number: who.draw(unheard(order, peer, number)).seconds


def _under_load(ours: Contestant, peer: Contestant, compared: Compared, plan: Plan) -> Rounds:
    """Seconds until all of a load is answered; where it comes at a rate, which sets that time, the mean latency."""
    outcomes: dict[str, list[Sequence[Outcome]]] = {ours.name: [], peer.name: []}

    def served(who: Contestant) -> Callable[[int], float]:
        def call(number: int) -> float:
            load = plan.load(number)
            found = who.serve(replace(load, orders=[unheard(order, peer.name, number) for order in load.orders]))
            if wrong := [outcome.message for outcome in found if outcome.status != "ok"]:
                raise EngineError(f"{who.name} failed {len(wrong)} of {len(found)} requests of the load: {wrong[0]}")
            outcomes[who.name].append(found)
            return statistics.mean(outcome.seconds for outcome in found) if load.rate else span(found)

        return call

    rounds = interleaved(served(ours), served(peer), plan.rounds)
    compared.loads = list(zip(outcomes[ours.name], outcomes[peer.name], strict=True))
    return rounds
