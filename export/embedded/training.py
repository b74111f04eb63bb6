"""What every training stage shares: a seeded, resumable loop that logs its loss."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

SLOW, QUICK = 0.25, 8.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast one stage learns."""

    name: str
    steps: int
    learning_rate: float
    warmup: int = 200
    floor: float = 0.01
    save_every: int = 250
    log_every: int = 50


def learning_rate_factor(step: int, plan: Plan) -> float:
    """Linear warm-up, then a cosine down to `plan.floor`."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Average:
    """Exponential moving average of a network's weights."""

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)


def remembered(file: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `make` gives, which is asked only where `file` does not hold it yet."""
    if not file.exists():
        torch.save(make(), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    tensors: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return tensors


def train(
    plan: Plan,
    networks: nn.ModuleDict,
    loss_at: Callable[[int], torch.Tensor],
    folder: Path,
    *,
    slow: tuple[str, ...] = (),
    quick: str | None = None,
) -> dict[str, dict[str, torch.Tensor]]:
    """Train until `plan.steps`, resuming from `folder`; returns the averaged weights of each network.

    `loss_at(step)` must draw its batch from a generator seeded with the step, so that a resumed run
    sees the same data as an uninterrupted one. Networks named in `slow` learn at a quarter of the rate,
    the parameter named `quick` (with its network's name, as `named_parameters` has it) at eight times the rate.
    """
    groups: list[dict[str, Any]] = []
    for name, network in networks.items():
        rate = plan.learning_rate * (SLOW if name in slow else 1.0)
        named = {f"{name}.{inner}": parameter for inner, parameter in network.named_parameters()}
        hurried = [named.pop(quick)] if quick in named else []
        groups += [{"params": list(named.values()), "lr": rate}]
        groups += [{"params": hurried, "lr": rate * QUICK}] if hurried else []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, plan))
    average = Average(networks)
    saved = folder / f"{plan.name}.pt"
    step, seconds = 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average.weights, step, seconds = state["average"], state["step"], state["seconds"]
    started, running = time.monotonic() - seconds, 0.0
    with (folder / f"{plan.name}.jsonl").open("a") as log:
        while step < plan.steps:
            loss = loss_at(step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update(networks, step)
            step += 1
            running += loss.item()
            if step % plan.log_every == 0:
                line = {"step": step, "loss": running / plan.log_every, "seconds": time.monotonic() - started}
                log.write(json.dumps(line) + "\n")
                log.flush()
                logger.info("%s %s", plan.name, line)
                running = 0.0
            if step % plan.save_every == 0 or step == plan.steps:
                parts: dict[str, Any] = {"networks": networks, "optimizer": optimizer, "schedule": schedule}
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"average": average.weights, "step": step, "seconds": time.monotonic() - started}
                torch.save(state, saved.with_suffix(".tmp"))
                saved.with_suffix(".tmp").replace(saved)
    return {
        name: {k.removeprefix(f"{name}."): v for k, v in average.weights.items() if k.startswith(f"{name}.")}
        for name in networks
    }
