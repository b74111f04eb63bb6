"""`python -m server`: launch a server, ask one for images, list the samplers, rewrite the model configurations."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from server.config import PLACEMENTS, ServerConfig
from server.errors import ServerError
from server.request import FIELDS, Field, Value
from server.sampler_names import SAMPLERS

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
        if field.name not in ("progress_interval", "encoding", "output_format"):
            _field_option(generate, field)
    verbs.add_parser("samplers", help="one line per sampler, canonical name first")
    verbs.add_parser("repository", help="write model_repository/*/config.pbtxt from the fields of a request")
    return made


def _field_option(target: argparse.ArgumentParser, field: Field) -> None:
    target.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=TYPES[field.datatype],
        nargs="+" if field.many else None,
        default=argparse.SUPPRESS,
        help=field.meaning.replace("%", "%%"),
    )


def _launch_options(target: argparse.ArgumentParser) -> None:
    target.add_argument("--model", type=Path, required=True, help="a folder written by `python -m export`")
    target.add_argument("--address", default="127.0.0.1", help="address to listen on")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        target.add_argument(f"--{name}-port", type=int, default=port)
    target.add_argument("--provider", default="auto", help="auto, cpu, openvino, cuda, tensorrt, or fake")
    target.add_argument("--unet-threads", type=int, default=0, help="CPU threads of the UNet; 0: one per core")
    target.add_argument("--max-rows", type=int, default=16, help="rows of one UNet call; a guided image takes two")
    target.add_argument("--queue-limit", type=int, default=512, help="images accepted and not yet answered")
    for component in ("text-encoder", "vae-decoder"):
        target.add_argument(f"--{component}", choices=PLACEMENTS, default="triton", help="where it runs")


def launch(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    from engines.component import PipelineSpec
    from server.launch import Ports, TritonServer, serve_until_signal

    config = ServerConfig(
        model=options.model.resolve(),
        provider=options.provider,
        unet_threads=options.unet_threads,
        max_rows=options.max_rows,
        queue_limit=options.queue_limit,
        text_encoder=options.text_encoder,
        vae_decoder=options.vae_decoder,
    )
    ports = Ports(options.http_port, options.grpc_port, options.metrics_port)
    with TritonServer(config, ports, options.address) as server:
        spec = PipelineSpec.read(config.model)
        sizes = ", ".join(f"{h}x{w}" for h, w in spec.resolutions)
        print(f"ready: {spec.checkpoint} at {sizes}; gRPC {server.grpc_url}, HTTP {server.http_url}", flush=True)
        return serve_until_signal(server)


def generate(options: argparse.Namespace) -> int:
    """Draw with a progress bar and write the images."""
    from tqdm import tqdm

    from server.client import Client
    from server.infotext import read_fields

    names = {field.name for field in FIELDS}
    given: dict[str, Value] = {k: v for k, v in vars(options).items() if k in names}
    fields = {**(read_fields(options.source.read_bytes()) if options.source else {}), **given}
    with Client(options.url) as client, tqdm(total=None, unit="step", disable=None) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = client.stream(on_progress, **fields)
    for index, data in enumerate(result.images):
        suffix = options.out.suffix or ".png"
        path = options.out.with_name(f"{options.out.stem}-{index}{suffix}" if index else f"{options.out.stem}{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{path}: seed {result.metadata['seeds'][index]}")
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
    verbs = {"launch": launch, "generate": generate, "samplers": samplers, "repository": repository}
    try:
        return verbs[options.verb](options)
    except (ServerError, EngineError, OSError) as error:
        print(f"{options.verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
