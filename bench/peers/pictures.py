"""Whole pictures: first whether a peer draws the same one, then how long it takes beside ours."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.offline import chosen_sizes
from bench.peers.comparison import Found, Pictures, Plan, check, compare_all
from bench.peers.contestant import Contestant, Load, fields_of, mixed_orders, prompt
from bench.peers.order import Order, Setup
from bench.peers.process import opened
from bench.peers.servers import our_server, pattern_server
from bench.peers.told import SETTINGS, Compared, figures
from bench.peers.worker import MODULES
from bench.triton_patterns.lockstep import Lockstep
from bench.triton_patterns.patterns import PATTERNS
from engines.component import PipelineSpec, Precision
from engines.errors import EngineError
from engines.providers import OPENVINO
from engines.runner import chosen_provider
from engines.verify import REFERENCE, arithmetic
from server.checkpoints import open_checkpoints
from server.config import ServerConfig

PEERS = (*MODULES, *PATTERNS)
# Whoever computes in bf16 by name; others do as ours does.
PRECISIONS: Mapping[str, Precision] = {
    "diffusers_fp32": "fp32",
    "diffusers_bf16": "bf16",
    "compiled_bf16": "bf16",
    "stable_diffusion_cpp": "fp32",
}


def run_pictures(options: argparse.Namespace) -> dict[str, Any]:
    """Each peer's ratio to ours in every setting, or why it has none.

    What ends before its time, once our own pictures were checked, is told in `failures` beside what there is.

    Raises:
        EngineError: numbers that are none, or an export that cannot be loaded or run.
        ServerError: our server does not start, or refuses.
    """
    spec = PipelineSpec.read(options.model)
    plan = plan_of(options, spec)
    provider = chosen_provider(options.provider)
    config = ServerConfig(options.model.resolve(), provider=provider, unet_threads=options.threads)
    ours_in = arithmetic(provider, spec.component("unet"), config.settings(spec.component("unet"), spec))
    expected = reference(config, plan.checked)
    found = Found()
    with our_server(config, options.log) as ours:
        quality = Compared(ours_in, ours.open_seconds)
        check(ours, quality, plan, expected)
        if not quality.same:
            found.failures.append(f"ours draws another picture than fp32 on the CPU: {quality.psnr:.1f} dB from it")
        others = partial(contestant, options=options, config=config, order=plan.orders["single"], ours_in=ours_in)
        compare_all(found, ours, options.peer or PEERS, others, plan, expected)
    found.failures += [f"{name} was asked for: {why}" for name, why in found.skipped.items() if name in options.peer]
    return {
        "what": "pictures",
        "provider": provider,
        **figures(quality, found.peers),
        "skipped": found.skipped,
        "failures": found.failures,
        "partial": found.partial,
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


def reference(config: ServerConfig, order: Order) -> Pictures:
    """The pictures of an order, (pictures, h, w, 3), each drawn alone, in fp32 on the CPU.

    Raises:
        EngineError: the export cannot be run.
    """
    lockstep = Lockstep(open_checkpoints(replace(config, provider=REFERENCE)))
    drawn = []
    for fields in fields_of(order):
        sent = {name: [value.encode() if isinstance(value, str) else value] for name, value in fields.items()}
        drawn += lockstep.draw([lockstep.parse(sent)])
    return np.stack(drawn)


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
