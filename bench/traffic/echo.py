"""A server that answers every request at once, with an empty picture: what a sender can do when nothing else limits it.

It speaks Triton's protocol as far as `server.async_client` does, from a process of its own, and draws nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import signal
from collections.abc import AsyncIterator, Iterator
from multiprocessing.connection import Connection
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages

from server.errors import ServerError
from server.sampler_names import find_sampler

SERVICE = "inference.GRPCInferenceService"
START_SECONDS = 60.0
# A gRPC server cancels calls at random when more than a thousand wait, and this one is to answer all.
PENDING = ("grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit")
MOST_PENDING = 1_000_000
# Fields of the request that the answer repeats.
NUMBERS = ("seed", "num_inference_steps", "num_images")
TEXTS = ("request_id", "prompt", "sampler")


@contextlib.contextmanager
def echoing() -> Iterator[str]:
    """The address of such a server, until the block ends.

    Raises:
        ServerError: it does not start.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise ServerError("the server that echoes does not start")
        yield f"127.0.0.1:{ours.recv()}"
    except EOFError:
        raise ServerError("the server that echoes ended; see above") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _process(pipe: Connection) -> None:
    # Ctrl-C is for the one who started it, and ends it when the load has ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    server = grpc.aio.server(options=[(name, MOST_PENDING) for name in PENDING])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()


def handlers() -> dict[str, Any]:
    """Of the methods that our client calls."""
    ready = messages.ModelReadyResponse(ready=True)

    async def metadata(request: Any, context: Any) -> Any:
        return messages.ServerMetadataResponse(name="triton")

    async def model_ready(request: Any, context: Any) -> Any:
        return ready

    async def infer(request: Any, context: Any) -> Any:
        return answered(request)

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield messages.ModelStreamInferResponse(infer_response=answered(request))

    def unary(method: Any, request: Any, response: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, response.SerializeToString)

    return {
        "ServerMetadata": unary(metadata, messages.ServerMetadataRequest, messages.ServerMetadataResponse),
        "ModelReady": unary(model_ready, messages.ModelReadyRequest, messages.ModelReadyResponse),
        "ModelInfer": unary(infer, messages.ModelInferRequest, messages.ModelInferResponse),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            stream, messages.ModelInferRequest.FromString, messages.ModelStreamInferResponse.SerializeToString
        ),
    }


def answered(request: Any) -> Any:
    """The answer to a request: as many pictures as it wants, of no bytes, and metadata that repeats it."""
    raw = {one.name: data for one, data in zip(request.inputs, request.raw_input_contents, strict=True)}
    told: dict[str, Any] = {name: int.from_bytes(raw[name], "little") for name in NUMBERS if name in raw}
    told |= {name: raw[name][4:].decode() for name in TEXTS if name in raw}
    found = find_sampler(told.get("sampler", ""))
    told |= {"sampler": found[0]} if found else {}
    metadata = json.dumps({"request": told, "timing": {}}).encode()
    images = told.get("num_images", 1)
    answer = messages.ModelInferResponse(model_name=request.model_name)
    for name, count in (("images", images), ("metadata", 1)):
        answer.outputs.add(name=name, datatype="BYTES", shape=[count])
    answer.raw_output_contents.append(bytes(4 * images))
    answer.raw_output_contents.append(len(metadata).to_bytes(4, "little") + metadata)
    return answer
