"""The unary model over Triton's HTTP endpoint, by the protocol's binary tensors, so that it costs no base64."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from server.answers import Result
from server.errors import Cancelled, InvalidRequest, NotFound, Overloaded, ServerError, TimedOut
from server.fields import CANCEL, Value
from server.protocol import Disconnected, input_arrays, packed
from server.repository import FACE

# Of a request: its bytes, and the length of the JSON that they begin with.
Body: TypeAlias = tuple[bytes, int]
JSON_LENGTH = "Inference-Header-Content-Length"
# Triton answers 400 to a cancelled request until some release after 2.51.0.
CANCELLED_WORDS = "was cancelled by its id"
# Triton's answers, by the code that its models gave.
STATUSES: dict[int, type[ServerError]] = {
    400: InvalidRequest,
    404: NotFound,
    499: Cancelled,
    503: Overloaded,
    504: TimedOut,
}


class HttpClient:
    """Talks to a server at `http://host:port`; for one event loop.

    Every open request has a connection of its own, since HTTP/1.1 takes one at a time; they are kept and used again.

    Raises:
        ServerError: aiohttp is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import aiohttp
        except ImportError:
            raise ServerError("HTTP needs aiohttp, which is not installed: pip install -e '.[bench]'") from None
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        self._aiohttp = aiohttp
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def close(self) -> None:
        await self._session.close()

    async def check(self, seconds: float = 10.0) -> None:
        """Make sure that a Triton answers, and that the unary model is ready.

        Raises:
            ServerError: what is wrong instead.
        """
        try:
            async with asyncio.timeout(seconds):
                status, _, body = await self._exchange("GET", "/v2", b"", {})
                ready, _, _ = await self._exchange("GET", f"/v2/models/{FACE}/ready", b"", {})
        except TimeoutError:
            raise ServerError(f"what is at {self.url} does not answer as a Triton: nothing in {seconds:g} s") from None
        if status != 200 or b'"extensions"' not in body:
            raise ServerError(f"what is at {self.url} does not answer as a Triton: status {status}, {body[:80]!r}")
        if ready != 200:
            raise NotFound(f"the Triton at {self.url} has no model {FACE} that is ready: start ours there")

    async def generate(self, **fields: Value) -> Result:
        """Ask the unary model; raises as `server.async_client.AsyncClient.generate`."""
        return await self.send(self.message(**fields))

    def message(self, **fields: Value) -> Body:
        """What `generate` sends, to be built ahead of `send`."""
        return request_body(fields)

    async def send(self, message: Body) -> Result:
        """Send what was built; raises as `generate`."""
        outputs = await self._infer(message, ("images", "metadata"))
        return Result(outputs["images"], _object(outputs["metadata"][0]))

    async def cancel(self, request_id: str) -> int:
        """Cancel the open requests of this id; returns how many.

        Raises:
            NotFound: there is none.
        """
        outputs = await self._infer(self.message(**{CANCEL.name: request_id}), ("metadata",))
        return int(_object(outputs["metadata"][0]).get("cancelled", 0))

    async def _infer(self, message: Body, wanted: Sequence[str]) -> dict[str, list[bytes]]:
        body, length = message
        headers = {JSON_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        status, told, answer = await self._exchange("POST", f"/v2/models/{FACE}/infer", body, headers)
        if status != 200:
            words = _words(answer, status)
            raise Cancelled(words) if CANCELLED_WORDS in words else STATUSES.get(status, ServerError)(words)
        return read_answer(answer, told.get(JSON_LENGTH), wanted)

    async def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            async with self._session.request(method, self.url + path, data=body, headers=headers) as answer:
                return answer.status, answer.headers, await answer.read()
        except self._aiohttp.InvalidURL:
            raise ServerError(f"{self.url} is no address: give http://host:port") from None
        except self._aiohttp.ClientResponseError as error:
            raise ServerError(f"what is at {self.url} does not answer in HTTP: {error.message}") from None
        except (self._aiohttp.ClientError, OSError) as error:
            raise Disconnected(f"{error or type(error).__name__} (is the server running at {self.url}?)") from None


def request_body(fields: Mapping[str, Value]) -> Body:
    """The body of a request, and the length of the JSON that it begins with; images come back as they are."""
    inputs, parts = [], []
    for name, datatype, array in input_arrays(fields):
        parts.append(packed(array))
        size = {"binary_data_size": len(parts[-1])}
        inputs.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": size})
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return b"".join([header, *parts]), len(header)


def read_answer(body: bytes, length: str | None, wanted: Sequence[str]) -> dict[str, list[bytes]]:
    """The BYTES outputs of an answer, by name.

    Args:
        length: of the JSON that it begins with, where outputs follow it.

    Raises:
        ServerError: it is not what our models send.
    """
    try:
        end = len(body) if length is None else int(length)
        found, place = {}, end
        for output in json.loads(body[:end])["outputs"]:
            size = int(output["parameters"]["binary_data_size"])
            found[str(output["name"])] = _unpacked(body[place : place + size])
            place += size
        if any(not found[name] for name in wanted):
            raise ValueError(f"no {' or '.join(wanted)}")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ServerError(f"the answer is not what {FACE} sends ({type(error).__name__}: {error})") from None
    return found


def _unpacked(data: bytes) -> list[bytes]:
    values, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place)
        place += 4 + length
        if place > len(data):
            raise ValueError("a value that is cut off")
        values.append(data[place - length : place])
    return values


def _object(text: bytes) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError as error:
        raise ServerError(f"the metadata of the answer is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise ServerError(f"the metadata of the answer is no JSON object: {text[:80]!r}")
    return told


def _words(body: bytes, status: int) -> str:
    """Of an error."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}: {body[:200].decode(errors='replace')}"
