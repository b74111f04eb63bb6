"""`python -m server`: launch a server, ask one for images, list the samplers, rewrite the model configurations."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.config import BACKENDS, COMPONENTS, PLACEMENTS, ServerConfig, named_model
from server.errors import ServerError, StartupError
from server.fields import ARRAY_OF, FIELDS, Field, Value
from server.sampler_names import SAMPLERS

# What `generate` chooses itself.
NOT_OFFERED = (
    *("progress_interval", "preview_interval", "stream_images", "encoding", "output_format"),
    *ARRAY_OF.values(),
)
# Components that are in the loop's process unless something else is asked for.
IN_PLACE = {"unet": "in_process"}
TYPES = {"STRING": str, "INT64": int, "FP32": float}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True)
    _launch_options(verbs.add_parser("launch", help="serve an exported checkpoint with tritonserver"))
    generate = verbs.add_parser("generate", help="ask a running server for images")
    generate.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server's gRPC")
    generate.add_argument("--out", type=Path, required=True, help="x.png; further images become x-1.png, x-2.png")
    generate.add_argument("--from", type=Path, dest="source", help="a picture to repeat; other options change it")
    for field in FIELDS:
        if field.name not in NOT_OFFERED:
            _field_option(generate, field)
    cancel = verbs.add_parser("cancel", help="cancel open requests by their id")
    cancel.add_argument("id", help="the request_id that they were sent with")
    cancel.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server's gRPC")
    verbs.add_parser("samplers", help="one line per sampler, canonical name first")
    verbs.add_parser("repository", help="write model_repository/*/config.pbtxt from the fields of a request")
    return made


def _field_option(target: argparse.ArgumentParser, field: Field) -> None:
    target.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=_file if field.picture else TYPES[field.datatype],
        nargs="+" if field.many else None,
        default=argparse.SUPPRESS,
        help=field.meaning.replace("%", "%%"),
    )


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read ({error.strerror})") from None


def _launch_options(target: argparse.ArgumentParser) -> None:
    target.add_argument(
        "--model", type=named_model, action="append", required=True, metavar="[NAME=]DIR",
        help="a folder written by `python -m export`; repeat for more checkpoints, the first is the default",
    )  # fmt: skip
    target.add_argument("--address", default="127.0.0.1", help="address to listen on")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        target.add_argument(f"--{name}-port", type=int, default=port)
    target.add_argument(
        "--provider", default="auto", help="auto, tensorrt, tensorrt_rtx, cuda, openvino, openvino_ep, cpu, or fake"
    )
    target.add_argument("--plans", action="store_true", help="run the plans in DIR/plans by that provider")
    target.add_argument("--cache", default="", help="folder for what providers compile; ~/.cache/aquatint by default")
    target.add_argument(
        "--cuda-graphs", action="store_true", help="record a GPU's calls once per shape, and replay them"
    )
    target.add_argument(
        "--cpu-precision", choices=("f32", "bf16"), default="", help="OpenVINO's; bf16 where it is quick"
    )
    target.add_argument("--pin-threads", action="store_true", help="bind the UNet's CPU threads to cores of their own")
    target.add_argument("--unet-threads", type=int, default=0, help="CPU threads of the UNet; 0: one per core")
    target.add_argument(
        "--component-threads", type=int, default=0, help="CPU threads of each other component; 0: half of the cores"
    )
    target.add_argument("--max-rows", type=int, default=16, help="rows of one UNet call; a guided image takes two")
    target.add_argument("--row-cap", type=int, default=0, help="rows that calls are filled to; 0: as measured")
    target.add_argument(
        "--step-curve", type=Path, help="result of `python -m bench offline`: start with its UNet calls, measure none"
    )
    target.add_argument("--queue-limit", type=int, default=1024, help="images accepted and not yet answered")
    target.add_argument("--vae-tile", type=int, default=1024, help="pixels; larger pictures are decoded in such tiles")
    target.add_argument("--picture-mb", type=int, default=20, help="of an image file that comes, at most")
    target.add_argument("--picture-megapixels", type=int, default=32, help="of a picture that comes, at most")
    target.add_argument(
        "--start-seconds", type=float, default=300.0, help="until ready; more where a provider compiles"
    )
    target.add_argument("--grace-seconds", type=float, default=60.0, help="for open requests after SIGTERM or SIGINT")
    target.add_argument(
        "--hang-seconds", type=float, default=60.0, help="a UNet call that takes longer is a hang; 0: never"
    )
    for component in COMPONENTS:
        place, flag = IN_PLACE.get(component, "triton"), f"--{component.replace('_', '-')}"
        target.add_argument(flag, choices=PLACEMENTS, default=place, help=f"where it runs ({place})")
    target.add_argument(
        "--backend", choices=BACKENDS, default="python", help="of Triton, for components that run in triton (python)"
    )
    target.add_argument("--response-cache-mb", type=int, default=0, help="answers kept for requests with a seed")
    target.add_argument("--trace-endpoint", default="", help="OpenTelemetry collector, such as http://localhost:4318")
    target.add_argument("--log-level", default="info", help="debug, info, warning or error")
    target.add_argument("--log-json", action="store_true", help="log lines as JSON")


def launch(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; a server that fails is started again."""
    from engines.component import PipelineSpec
    from server.launch import TritonServer
    from server.ports import Ports
    from server.supervisor import Supervisor, serve_until_signal

    config = ServerConfig(
        model=options.model[0][1],
        name=options.model[0][0],
        more=tuple(options.model[1:]),
        provider=options.provider,
        plans=options.plans,
        backend=options.backend,
        cache=options.cache and str(Path(options.cache).resolve()),
        cuda_graphs=options.cuda_graphs,
        cpu_precision=options.cpu_precision,
        pinned=options.pin_threads,
        unet_threads=options.unet_threads,
        component_threads=options.component_threads,
        max_rows=options.max_rows,
        row_cap=options.row_cap,
        step_seconds=_step_seconds(options),
        queue_limit=options.queue_limit,
        vae_tile=options.vae_tile,
        picture_bytes=options.picture_mb << 20,
        picture_pixels=options.picture_megapixels << 20,
        **{component: getattr(options, component) for component in COMPONENTS},
        response_cache_bytes=options.response_cache_mb << 20,
        trace_endpoint=options.trace_endpoint,
        log_level=options.log_level,
        log_json=options.log_json,
    )
    ports = Ports(options.http_port, options.grpc_port, options.metrics_port)
    server = TritonServer(config, ports, options.address, start_seconds=options.start_seconds)
    supervisor = Supervisor(server, grace_seconds=options.grace_seconds, hang_seconds=options.hang_seconds)
    specs = {name: PipelineSpec.read(own.model) for name, own in config.checkpoints().items()}
    listed = "; ".join(
        f"{name} ({spec.task}) at {', '.join(f'{h}x{w}' for h, w in spec.resolutions)}" for name, spec in specs.items()
    )

    def on_ready() -> None:
        print(f"ready: {listed}; gRPC {server.grpc_url}, HTTP {server.http_url}", flush=True)

    return serve_until_signal(supervisor, on_ready)


def _step_seconds(options: argparse.Namespace) -> tuple[tuple[int, float], ...]:
    """Of `--step-curve`; none where it is not given."""
    from engines.component import PipelineSpec
    from engines.runner import chosen_provider
    from server.curve_file import step_seconds

    if options.step_curve is None:
        return ()
    if len(options.model) > 1:
        raise StartupError("--step-curve is of one checkpoint: leave it out to serve several, whose calls are measured")
    spec = PipelineSpec.read(options.model[0][1])
    if options.provider == "fake":  # takes the time of any other
        return step_seconds(options.step_curve, spec, None)
    provider = chosen_provider(options.provider, plans=options.plans)
    return step_seconds(options.step_curve, spec, provider, plans=options.plans)


def generate(options: argparse.Namespace) -> int:
    """Draw with a progress bar and write the images."""
    from tqdm import tqdm

    from server.client import Client
    from server.infotext import read_fields

    names = {field.name for field in FIELDS}
    given: dict[str, Value] = {k: v for k, v in vars(options).items() if k in names}
    fields = {**(read_fields(options.source.read_bytes()) if options.source else {}), **given}
    with Client(options.url) as client, tqdm(total=None, unit="step", disable=None) as bar:

        def on_progress(event: Mapping[str, Any]) -> None:
            bar.total = event["total"]
            bar.set_postfix(ahead=event["queue_position"], left=f"{event['seconds_left']:.1f}s", refresh=False)
            bar.update(event["step"] - bar.n)

        result = client.stream(on_progress, **fields)
    for index, data in enumerate(result.images):
        suffix = options.out.suffix or ".png"
        path = options.out.with_name(f"{options.out.stem}-{index}{suffix}" if index else f"{options.out.stem}{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{path}: seed {result.metadata['seeds'][index]}")
    return 0


def cancel(options: argparse.Namespace) -> int:
    """Say how many requests were cancelled."""
    from server.client import Client

    with Client(options.url) as client:
        print(f"cancelled: {client.cancel(options.id)}")
    return 0


def samplers(options: argparse.Namespace) -> int:
    """Canonical name, UNet calls for n steps, what it is, the options it heeds, and its other names."""
    for sampler in SAMPLERS:
        others = ", ".join(filter(None, (*sampler.aliases, sampler.diffusers)))
        heeds = " ".join((*sampler.options, *(["schedule"] if sampler.schedules else [])))
        print(f"{sampler.name:18}  {sampler.calls:7} {sampler.summary:56} {heeds:22}  {others}")
    return 0


def repository(options: argparse.Namespace) -> int:
    from server.repository import write_request_configs

    write_request_configs()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 only if what was asked was done."""
    from engines.errors import EngineError

    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    verbs = {
        "launch": launch,
        "generate": generate,
        "cancel": cancel,
        "samplers": samplers,
        "repository": repository,
    }
    try:
        return verbs[options.verb](options)
    except (ServerError, EngineError, OSError) as error:
        print(f"{options.verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
