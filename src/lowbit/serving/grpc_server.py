"""The Open Inference Protocol over gRPC, and the health check that balancers ask: on the same event loop as REST."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from lowbit import __version__
from lowbit.errors import UsageError
from lowbit.serving import callers, grpc_codec
from lowbit.serving.answering import Caller
from lowbit.serving.grpc_messages import HEALTH, METHODS, NOT_SERVING, SERVICE, SERVICE_UNKNOWN, SERVING, messages
from lowbit.serving.refusals import Malformed, NotServed, Refusal
from lowbit.serving.rest import EXTENSIONS, metadata
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings

ENVELOPE = 1 << 20
"""Bytes of a message beside its tensors: names, shapes, parameters."""
IN_A_STREAM = 16
"""Requests of one stream that are answered at the same time; the client's next ones wait."""

SOONEST_S = 1e-6
"""A deadline that has passed: 0 would mean that there is none."""
FAILED = "The server failed on this request."
_log = logging.getLogger("lowbit.serving")


class GrpcServer:
    """A server that is running.

    Attributes:
        port: It listens on.
        address: "host:port".
    """

    def __init__(self, server: grpc.aio.Server, host: str, port: int) -> None:
        """Of a server that was started."""
        self.port = port
        self.address = f"{host}:{port}"
        self._server = server

    async def stop(self, grace: float | None = None) -> None:
        """Takes no more calls, and gives those inside `grace` seconds to end."""
        await self._server.stop(grace)


async def start_grpc(service: Service, settings: Settings) -> GrpcServer:
    """Starts answering on `settings.host` and `settings.grpc_port` (0 takes a free one).

    Raises:
        UsageError: the address is not ours or not free, or the certificate and key cannot be used.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes + ENVELOPE),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(settings.reuse_port)),
            ("grpc.max_concurrent_streams", settings.max_requests),
        ],
        maximum_concurrent_rpcs=2 * settings.max_requests,
    )
    server.add_generic_rpc_handlers(_handlers(Calls(service)))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port or 0}"
    try:
        if settings.certificate is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(settings))
    except RuntimeError:
        raise UsageError(f"Cannot listen on {address} for gRPC.", "Another --grpc-port (0 takes a free one) or --host.") from None
    await server.start()
    return GrpcServer(server, host, port)


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    assert settings.certificate is not None, "asked before"
    key = settings.private_key or settings.certificate  # one file may hold both
    try:
        return grpc.ssl_server_credentials([(key.read_bytes(), settings.certificate.read_bytes())])
    except OSError as error:
        raise UsageError(
            f"'{error.filename}' cannot be read: {error.strerror}.", "Give --certificate and --private-key, both PEM."
        ) from None


def _handlers(calls: Calls) -> tuple[grpc.GenericRpcHandler, ...]:
    known = messages()
    answers = {name: _unary(getattr(calls, name), known[f"{name}Request"], known[f"{name}Response"]) for name in METHODS}
    answered = known["ModelStreamInferResponse"].SerializeToString
    answers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(calls.ModelStreamInfer, None, answered)
    health = {"Check": _unary(calls.Check, known["HealthCheckRequest"], known["HealthCheckResponse"])}
    return (
        grpc.method_handlers_generic_handler(SERVICE, answers),
        grpc.method_handlers_generic_handler(f"{HEALTH}.Health", health),
    )


def _unary(call: Callable[[Any, Any], Awaitable[Any]], request: Any, response: Any) -> grpc.RpcMethodHandler:
    """A method whose refusals become status codes, and whose failures say nothing of the inside. It reads the message itself: what the
    library says of one that cannot be read would be our fault."""

    async def answered(raw: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await call(_read(request, raw), context)
        except Refusal as refusal:
            if refusal.retry_after_s is not None:
                told = context.trailing_metadata() or ()
                context.set_trailing_metadata((*told, ("retry-after", f"{max(1, round(refusal.retry_after_s))}")))
            await context.abort(grpc.StatusCode[refusal.code], refusal.message)
        except Exception:
            _log.exception("a call over gRPC failed")
            await context.abort(grpc.StatusCode.INTERNAL, FAILED)

    return grpc.unary_unary_rpc_method_handler(answered, None, response.SerializeToString)


def _read(message: Any, raw: bytes) -> Any:
    try:
        return message.FromString(raw)
    except DecodeError:
        raise Malformed(f"The message is no {message.DESCRIPTOR.name}.") from None


class Calls:
    """What the service's methods do, one each."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._messages = messages()

    async def ServerLive(self, _message: Any, _context: grpc.aio.ServicerContext) -> Any:
        return self._messages["ServerLiveResponse"](live=True)

    async def ServerReady(self, _message: Any, _context: grpc.aio.ServicerContext) -> Any:
        return self._messages["ServerReadyResponse"](ready=self._service.ready)

    async def ModelReady(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        """Of a model that is not there: no, rather than an error."""
        self._admit(context)
        try:
            self._service.model(message.name, message.version or None)
        except NotServed:
            return self._messages["ModelReadyResponse"](ready=False)
        return self._messages["ModelReadyResponse"](ready=self._service.ready)

    async def ServerMetadata(self, _message: Any, context: grpc.aio.ServicerContext) -> Any:
        self._admit(context)
        return self._messages["ServerMetadataResponse"](name="lowbit", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        self._admit(context)
        found = metadata(self._service.model(message.name, message.version or None))
        fields = ("name", "versions", "platform", "inputs", "outputs")
        return self._messages["ModelMetadataResponse"](**{field: found[field] for field in fields})

    async def ModelInfer(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        headers = self._admit(context)
        caller = Caller(callers.request_id(headers), headers, context.time_remaining())
        context.set_trailing_metadata(((callers.REQUEST_ID, caller.request_id),))
        return await self._infer(message, caller)

    async def ModelStreamInfer(self, incoming: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Answers come in the order of the requests, several of which are worked on at once; a refusal ends its request, not the stream."""
        try:
            headers = self._admit(context)
        except Refusal as refusal:
            await context.abort(grpc.StatusCode[refusal.code], refusal.message)
        waiting: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(IN_A_STREAM)

        async def read() -> None:
            async for raw in incoming:
                caller = Caller(callers.request_id(headers), headers, context.time_remaining())
                await waiting.put(asyncio.create_task(self._in_stream(raw, caller)))
            await waiting.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await waiting.get()) is not None:
                yield await task
        finally:
            reader.cancel()
            while not waiting.empty():
                if (task := waiting.get_nowait()) is not None:
                    task.cancel()

    async def Check(self, message: Any, _context: grpc.aio.ServicerContext) -> Any:
        """The health check: of the server (an empty name or our service's), or of a model by name."""
        status = SERVING if self._service.ready else NOT_SERVING
        if message.service not in ("", SERVICE, *self._service.models):
            status = SERVICE_UNKNOWN
        return self._messages["HealthCheckResponse"](status=status)

    async def _in_stream(self, raw: bytes, caller: Caller) -> Any:
        response, message = self._messages["ModelStreamInferResponse"], None
        try:
            message = _read(self._messages["ModelInferRequest"], raw)
            return response(infer_response=await self._infer(message, caller))
        except Refusal as refusal:
            why = refusal.message
        except Exception:
            _log.exception("a call over gRPC failed")
            why = FAILED
        return response(error_message=why, infer_response={"id": message.id if message else ""})

    async def _infer(self, message: Any, caller: Caller) -> Any:
        try:
            request = grpc_codec.parse(message)
            caller = _patient(caller, callers.waits_s(caller.headers, request.parameters))
            response = await self._service.infer(message.model_name, message.model_version or None, request, caller)
        except Refusal as refusal:
            self._service.refused(refusal, caller)
            raise
        return grpc_codec.render(response, request)

    def _admit(self, context: grpc.aio.ServicerContext) -> dict[str, str]:
        """The call's metadata as headers, once its key is known to be right."""
        headers = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        try:
            callers.admit(self._service.settings.api_keys, headers)
        except Refusal as refusal:
            self._service.refused(refusal, Caller(callers.request_id(headers), headers))
            raise
        return headers


def _patient(caller: Caller, said_s: float | None) -> Caller:
    """The shorter of the call's deadline and what the request itself says."""
    told = [max(seconds, SOONEST_S) for seconds in (caller.deadline_s, said_s) if seconds is not None]
    return Caller(caller.request_id, caller.headers, min(told, default=None))
