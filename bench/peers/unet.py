"""The UNet alone: OpenVINO told nothing but the precision, torch in bf16, diffusers' fp32, called in turn with ours."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from bench.offline import chosen_sizes, component_flops, timed
from bench.peers.diffusers_drawer import REMEDY
from bench.peers.order import MissingPeerError
from bench.peers.rounds import Rounds, interleaved
from bench.peers.told import ratio
from bench.peers.worker import needed
from bench.reporting.measures import told
from engines.component import Arrays, PipelineSpec
from engines.errors import EngineError
from engines.picture import Case, feeds
from engines.providers import OPENVINO, Settings, default_cache, openvino_precision
from engines.runner import chosen_provider, open_runner
from engines.verify import REFERENCE

UNET = "unet"
WARM_UP = 1
# What ours raises, and what torch, diffusers and OpenVINO do: for a file that is not there, or a call that fails.
FAILED = (EngineError, OSError, RuntimeError, ValueError)
# Loads a peer, and gives what calls it.
Opened: TypeAlias = Callable[[argparse.Namespace, Arrays], Callable[[], object]]


def run_unet(options: argparse.Namespace) -> dict[str, Any]:
    """Medians, and how many times as long as ours each of the others takes, call by call.

    A peer that fails is told in `failures`, beside the rounds that there are.

    Raises:
        EngineError: numbers that are none, ours on a GPU, or something that cannot be loaded or run.
    """
    if min(options.rows, options.repeats) < 1:
        raise EngineError("--rows and --repeats must be at least 1")
    provider = chosen_provider(options.provider)
    if not provider.startswith((REFERENCE, OPENVINO)):
        raise EngineError(
            f"the peers of --what unet compute on the CPU, and ours by {provider}: give --provider openvino or cpu, or "
            "compare whole pictures"
        )
    spec = PipelineSpec.read(options.model)
    case = Case(chosen_sizes(options.size, spec, "--size")[0], 0, options.rows)
    component = spec.component(UNET)
    fed = feeds(component, spec, case, case.rows)
    ours = open_runner(component, options.model, provider, Settings(threads=options.threads, cache=default_cache()))
    flops = component_flops(component, spec, case, options.model)
    results: dict[str, Rounds] = {}
    skipped: dict[str, str] = {}
    failures: list[str] = []
    try:
        for name in options.peer or PEERS:
            try:
                _compare(results, name, PEERS[name], lambda: ours.infer(fed), fed, options)
            except MissingPeerError as error:
                skipped[name] = str(error)
            except FAILED as error:
                failures.append(f"{name}: {' '.join(str(error).split())[:400] or type(error).__name__}")
            # A peer's weights go before the next one's come.
            gc.collect()
    except KeyboardInterrupt:
        if not results:
            raise
        failures.append("interrupted")
    return {
        "what": "unet",
        "provider": provider,
        "rows": case.rows,
        "size": case.resolution,
        "tflop": flops / 1e12,
        "peers": {name: rounds.figures() for name, rounds in results.items()},
        "skipped": skipped,
        "partial": bool(failures),
        "failures": [
            *failures,
            *(f"{name} was asked for: {skipped[name]}" for name in options.peer if name in skipped),
        ],
        **told([ratio(f"{name} unet", rounds) for name, rounds in results.items()]),
    }


def _compare(
    results: dict[str, Rounds],
    name: str,
    opened: Opened,
    ours: Callable[[], object],
    fed: Arrays,
    options: argparse.Namespace,
) -> None:
    for rounds in compared(ours, opened(options, fed), options.repeats):
        results[name] = rounds


def compared(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> Iterator[Rounds]:
    """Calls in turn, after one of each that is not counted; all rounds so far, after each."""
    for call in (ours, theirs):
        timed(call, WARM_UP)
    yield from interleaved(lambda number: timed(ours, 1)[0], lambda number: timed(theirs, 1)[0], repeats)


def _openvino(options: argparse.Namespace, fed: Arrays) -> Callable[[], object]:
    """The same graph for these shapes only."""
    core = needed("openvino", REMEDY).Core()
    model = core.read_model(options.model / PipelineSpec.read(options.model).component(UNET).file)
    model.reshape({name: list(array.shape) for name, array in fed.items()})
    wanted = {"INFERENCE_PRECISION_HINT": openvino_precision(Settings())}
    if options.threads:
        wanted["INFERENCE_NUM_THREADS"] = str(options.threads)
    request = core.compile_model(model, "CPU", wanted).create_infer_request()
    return lambda: request.infer(fed)


def _torch_bf16(options: argparse.Namespace, fed: Arrays) -> Callable[[], object]:
    return _torch(options, fed, needed("torch", REMEDY).bfloat16)


def _diffusers_fp32(options: argparse.Namespace, fed: Arrays) -> Callable[[], object]:
    return _torch(options, fed, needed("torch", REMEDY).float32)


def _torch(options: argparse.Namespace, fed: Arrays, dtype: Any) -> Callable[[], object]:
    """Diffusers' own network, called as its pipeline calls it."""
    torch, diffusers = needed("torch", REMEDY), needed("diffusers", REMEDY)
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    folder = options.checkpoint / UNET
    network = diffusers.UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype).eval()
    tensors = {name: torch.from_numpy(array) for name, array in fed.items()}
    sample, states = tensors["sample"].to(dtype), tensors["encoder_hidden_states"].to(dtype)

    def call() -> object:
        with torch.no_grad():
            return network(sample, tensors["timestep"], states, return_dict=False)

    return call


PEERS: dict[str, Opened] = {
    "openvino": _openvino,
    "torch_bf16": _torch_bf16,
    "diffusers_fp32": _diffusers_fp32,
}
