"""Where a load test sends its requests: over REST with raw bytes, or over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from lowbit.errors import UsageError
from lowbit.serving.load import http_client
from lowbit.serving.load.http_client import Connection, Failed, Unsent
from lowbit.serving.protocol import rest_codec, wire
from lowbit.serving.protocol.requests import InferResponse
from lowbit.types import Feeds

VARIED = 16
"""Different requests that are sent in turn."""
_STATUSES = {"OK": 200, "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 413}
_STATUSES |= {"CANCELLED": 499, "INTERNAL": 500, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504}


@dataclass(frozen=True)
class Model:
    """What a server says of a model.

    Attributes:
        name: Of it.
        version: Of it.
        inputs: (name, datatype, shape); -1 for an axis of any size.
    """

    name: str
    version: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]

    def feeds(self, rows: int, length: int, seed: int) -> Feeds:
        """Random inputs of the right kind: numbers around 0, small whole numbers, and ones for what is called a mask."""
        rng = np.random.default_rng(seed)
        found: Feeds = {}
        for name, datatype, shape in self.inputs:
            sizes = (rows, *(length if size < 0 else size for size in shape[1:]))
            if datatype == wire.BYTES:
                raise UsageError(f"Input '{name}' of '{self.name}' takes strings.", "Load tests are for models that take numbers.")
            dtype = wire.numpy_dtype(datatype)
            if dtype.kind == "f" or datatype == "BF16":
                found[name] = rng.standard_normal(sizes, np.float32).astype(dtype)
            else:
                found[name] = (np.ones(sizes) if "mask" in name else rng.integers(0, 2 if dtype.kind == "b" else 100, sizes)).astype(dtype)
        return found


def body(feeds: Feeds, outputs: Sequence[str] = ()) -> tuple[bytes, int]:
    """A request in the binary extension, and the length of its JSON."""
    raw = [wire.to_bytes(array) for array in feeds.values()]
    inputs = [
        {
            "name": name,
            "datatype": wire.datatype_of(array.dtype.name),
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(part)},
        }
        for (name, array), part in zip(feeds.items(), raw, strict=True)
    ]
    document: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if outputs:
        document["outputs"] = [{"name": name} for name in outputs]
    text = json.dumps(document).encode()
    return b"".join([text, *raw]), len(text)


def parse_answer(response: http_client.Response) -> InferResponse:
    """The tensors of an answer over REST."""
    split = int(response.headers.get(rest_codec.HEADER, len(response.body)))
    document, at, outputs = json.loads(response.body[:split]), split, {}
    for given in document["outputs"]:
        size = given.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[given["name"]] = wire.from_json(given["name"], given["datatype"], given["shape"], given["data"])
            continue
        outputs[given["name"]] = wire.from_bytes(given["name"], given["datatype"], given["shape"], response.body[at : at + size])
        at += size
    return InferResponse(
        document["model_name"], document.get("model_version", ""), outputs, document.get("id", ""), document.get("parameters", {})
    )


async def describe(url: str, model: str, headers: Mapping[str, str]) -> Model:
    """Asks a server about its model.

    Raises:
        UsageError: there is no such server or model.
    """
    base = url.rstrip("/")
    try:
        found = await http_client.fetch(f"{base}/v2/models/{quote(model)}", headers=headers)
    except Failed as error:
        raise UsageError(f"{base} does not answer: {error}.", "Start a server first: lowbit serve BUNDLE.") from None
    if found.status != 200:
        raise UsageError(f"{base} answers {found.status} about model '{model}': {found.body[:200].decode('utf-8', 'replace')}")
    document = json.loads(found.body)
    inputs = tuple((each["name"], each["datatype"], tuple(each["shape"])) for each in document["inputs"])
    return Model(document["name"], (document.get("versions") or [""])[-1], inputs)


class RestTarget:
    """Sends over connections that are kept; as many as are needed at once."""

    def __init__(self, url: str, model: Model, feeds: Sequence[Feeds], headers: Mapping[str, str], ssl: Any = None) -> None:
        """Makes the requests beforehand."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl or (True if parts.scheme == "https" else None)
        self._idle: list[Connection] = []
        self._requests = []
        for each in feeds:
            whole, length = body(each)
            more = {**headers, "Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
            target = f"/v2/models/{quote(model.name)}/infer"
            self._requests.append(http_client.request("POST", target, parts.netloc, more, whole))

    async def ask(self, number: int) -> http_client.Response:
        """The answer to a request; sent again where a kept connection turned out to be closed.

        Raises:
            Failed: there was none.
        """
        request = self._requests[number % len(self._requests)]
        while self._idle:
            connection = self._idle.pop()
            if not connection.open:
                continue
            with contextlib.suppress(Unsent):
                return await self._on(connection, request)
        return await self._on(await http_client.connect(self._host, self._port, self._ssl), request)

    async def _on(self, connection: Connection, request: bytes) -> http_client.Response:
        found = await connection.ask(request)
        if connection.open:
            self._idle.append(connection)
        return found

    async def __call__(self, number: int) -> int:
        """See `loadtest.Send`."""
        try:
            return (await self.ask(number)).status
        except Failed:
            return 0

    async def close(self) -> None:
        """Ends the connections."""
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)


class GrpcTarget:
    """Sends over gRPC, on several channels: one connection is one stream of bytes."""

    def __init__(
        self, address: str, model: Model, feeds: Sequence[Feeds], headers: Mapping[str, str], channels: int = 4, tls: bool = False
    ) -> None:
        """Makes the requests beforehand."""
        import grpc

        from lowbit.serving.protocol.grpc_messages import SERVICE, messages

        known = messages()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._error = grpc.aio.AioRpcError
        self._channels = [
            grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options)
            if tls
            else grpc.aio.insecure_channel(address, options)
            for _ in range(channels)
        ]
        self._calls = [
            channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=known["ModelInferResponse"].FromString)
            for channel in self._channels
        ]
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._requests = [_message(known["ModelInferRequest"], model.name, each).SerializeToString() for each in feeds]

    async def ask(self, number: int) -> Any:
        """The answer to a request, a ModelInferResponse."""
        call = self._calls[number % len(self._calls)]
        return await call(self._requests[number % len(self._requests)], metadata=self._metadata)

    async def __call__(self, number: int) -> int:
        """See `loadtest.Send`."""
        try:
            await self.ask(number)
        except self._error as error:
            return _STATUSES.get(error.code().name, 0)
        return 200

    async def close(self) -> None:
        """Ends the connections."""
        for channel in self._channels:
            await channel.close()


def _message(kind: Any, model: str, feeds: Feeds) -> Any:
    inputs = [{"name": name, "datatype": wire.datatype_of(array.dtype.name), "shape": list(array.shape)} for name, array in feeds.items()]
    return kind(model_name=model, inputs=inputs, raw_input_contents=[wire.to_bytes(array) for array in feeds.values()])


def varied(model: Model, rows: int, length: int, seed: int, count: int = VARIED) -> list[Feeds]:
    """Different requests."""
    return [model.feeds(rows, length, seed + number) for number in range(count)]
