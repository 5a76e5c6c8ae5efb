"""The Open Inference Protocol over gRPC, and the health check that balancers ask: on the same event loop as REST."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from lowbit import __version__
from lowbit.errors import UsageError
from lowbit.serving.answer.answered import Caller
from lowbit.serving.protocol import aside, callers, grpc_codec
from lowbit.serving.protocol.grpc_messages import HEALTH, METHODS, NOT_SERVING, SERVICE, SERVICE_UNKNOWN, SERVING, messages
from lowbit.serving.protocol.refusals import Malformed, NotServed, Refusal, TooSlow, Unavailable
from lowbit.serving.service import Service
from lowbit.serving.settings import Settings
from lowbit.serving.web.rest import EXTENSIONS, metadata

ENVELOPE = 1 << 20
"""Bytes of a message beside its tensors: names, shapes, parameters."""
IN_A_STREAM = 16
"""Requests of one stream that are answered at the same time; the client's next ones wait."""
STREAMS = 64
"""At a time. Each may be in the middle of a message, whose size nobody knows before it is here."""
OPEN = ("ServerLive", "ServerReady", "Check")
"""Health needs no key: those who ask have none."""

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
            f"'{error.filename}' cannot be read: {error.strerror}.", "Give --tls-certificate and --tls-key, both PEM."
        ) from None


def _handlers(calls: Calls) -> tuple[grpc.GenericRpcHandler, ...]:
    known = messages()
    answers = {name: _unary(calls, name, known[f"{name}Request"], known[f"{name}Response"]) for name in METHODS}
    answered = known["ModelStreamInferResponse"].SerializeToString
    answers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(calls.ModelStreamInfer, None, answered)
    health = {"Check": _unary(calls, "Check", known["HealthCheckRequest"], known["HealthCheckResponse"])}
    return (
        grpc.method_handlers_generic_handler(SERVICE, answers),
        grpc.method_handlers_generic_handler(f"{HEALTH}.Health", health),
    )


def _unary(calls: Calls, name: str, request: Any, response: Any) -> grpc.RpcMethodHandler:
    """A method whose refusals become status codes, and whose failures say nothing of the inside.

    To the library it is one that takes a stream: its only message is then asked for here, once the call's key is known to be right and
    there is room for it. What the library itself says of a message that cannot be read would be our fault, too.
    """
    call: Callable[[Any, Caller, grpc.aio.ServicerContext], Awaitable[Any]] = getattr(calls, name)

    async def answered(_messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
        caller = _caller(context)
        try:
            if name not in OPEN:
                calls.admit(caller)
            async with calls.received(context) as raw:
                return await call(_read(request, raw), caller, context)
        except Exception as error:
            why = _why(error)
        calls.refused(why, caller)
        if why.retry_after_s is not None:
            told = context.trailing_metadata() or ()
            context.set_trailing_metadata((*told, ("retry-after", f"{max(1, round(why.retry_after_s))}")))
        await context.abort(grpc.StatusCode[why.code], why.message)
        return None

    return grpc.stream_unary_rpc_method_handler(answered, None, response.SerializeToString)


def _caller(context: grpc.aio.ServicerContext) -> Caller:
    """Who calls: the metadata are the headers."""
    headers = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Caller(callers.request_id(headers), headers, context.time_remaining())


def _why(error: Exception) -> Refusal:
    """What the client is told; failures of our own are logged, and it learns no more than that there was one."""
    if isinstance(error, Refusal):
        return error
    _log.error("a call over gRPC failed", exc_info=error)
    return Refusal(FAILED)


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
        settings = service.settings
        self._reading = asyncio.Semaphore(max(1, settings.max_held_bytes // settings.max_body_bytes))
        self._streams = 0

    def admit(self, caller: Caller) -> None:
        """Asks for a key where there are any.

        Raises:
            Unauthorized: none, or the wrong one.
        """
        callers.admit(self._service.settings.api_keys, caller.headers)

    def refused(self, refusal: Refusal, caller: Caller) -> None:
        """Tells the observers."""
        self._service.refused(refusal, caller)

    @contextlib.asynccontextmanager
    async def received(self, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """The message of a call, with room for it; so many are on their way at once as fit if all are the largest.

        Raises:
            Refusal: it does not come, or there is no room.
        """
        limit_s = self._service.settings.body_timeout_s
        async with self._reading:
            try:
                async with asyncio.timeout(limit_s):
                    raw = await context.read()
            except TimeoutError:
                raise TooSlow(f"The message was not here whole after {limit_s:g} s.") from None
        if not isinstance(raw, bytes):
            raise Malformed("The call ended without a message.")
        with self._service.holding(len(raw)):
            yield raw

    async def ServerLive(self, _message: Any, _caller: Caller, _context: grpc.aio.ServicerContext) -> Any:
        return self._messages["ServerLiveResponse"](live=True)

    async def ServerReady(self, _message: Any, _caller: Caller, _context: grpc.aio.ServicerContext) -> Any:
        return self._messages["ServerReadyResponse"](ready=self._service.ready)

    async def ModelReady(self, message: Any, _caller: Caller, _context: grpc.aio.ServicerContext) -> Any:
        """Of a model that is not there: no, rather than an error."""
        try:
            found = self._service.model(message.name, message.version or None)
        except NotServed:
            return self._messages["ModelReadyResponse"](ready=False)
        return self._messages["ModelReadyResponse"](ready=self._service.ready_for(found))

    async def ServerMetadata(self, _message: Any, _caller: Caller, _context: grpc.aio.ServicerContext) -> Any:
        return self._messages["ServerMetadataResponse"](name="lowbit", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, message: Any, _caller: Caller, _context: grpc.aio.ServicerContext) -> Any:
        served = self._service.model(message.name, message.version or None)
        found = metadata(served, self._service.versions(served.name))
        fields = ("name", "versions", "platform", "inputs", "outputs")
        return self._messages["ModelMetadataResponse"](**{field: found[field] for field in fields})

    async def ModelInfer(self, message: Any, caller: Caller, context: grpc.aio.ServicerContext) -> Any:
        context.set_trailing_metadata(((callers.REQUEST_ID, caller.request_id),))
        return await self._infer(message, caller)

    async def Check(self, message: Any, _caller: Caller, _context: grpc.aio.ServicerContext) -> Any:
        """The health check: of the server (an empty name or our service's), or of a model by name."""
        found = self._service.models.get(message.service)
        ready = self._service.ready if found is None else self._service.ready_for(found)
        status = SERVING if ready else NOT_SERVING
        if found is None and message.service not in ("", SERVICE):
            status = SERVICE_UNKNOWN
        return self._messages["HealthCheckResponse"](status=status)

    async def ModelStreamInfer(self, incoming: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Answers come in the order of the requests, several of which are worked on at once; a refusal ends its request, not the stream."""
        caller = _caller(context)
        try:
            self.admit(caller)
            if self._streams >= STREAMS:
                raise Unavailable(f"{STREAMS} streams are open, which is the limit.", retry_after_s=1)
        except Refusal as refusal:
            self.refused(refusal, caller)
            await context.abort(grpc.StatusCode[refusal.code], refusal.message)
        waiting: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(IN_A_STREAM)
        self._streams += 1
        reader = asyncio.create_task(self._read_stream(incoming, context, caller.headers, waiting))
        try:
            while (task := await waiting.get()) is not None:
                yield await task
        finally:
            self._streams -= 1
            reader.cancel()
            while not waiting.empty():
                if (task := waiting.get_nowait()) is not None:
                    task.cancel()

    async def _read_stream(
        self,
        incoming: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext,
        headers: Mapping[str, str],
        waiting: asyncio.Queue[asyncio.Task[Any] | None],
    ) -> None:
        try:
            async for raw in incoming:
                caller = Caller(callers.request_id(headers), headers, context.time_remaining())
                await waiting.put(asyncio.create_task(self._in_stream(raw, caller)))
        except Exception:  # the library's, of a client that went
            _log.debug("a stream broke off", exc_info=True)
        await waiting.put(None)

    async def _in_stream(self, raw: bytes, caller: Caller) -> Any:
        response, message = self._messages["ModelStreamInferResponse"], None
        try:
            with self._service.holding(len(raw)):
                message = _read(self._messages["ModelInferRequest"], raw)
                return response(infer_response=await self._infer(message, caller))
        except Exception as error:
            why = _why(error)
        self.refused(why, caller)
        return response(error_message=why.message, infer_response={"id": message.id if message else ""})

    async def _infer(self, message: Any, caller: Caller) -> Any:
        request = await aside.by_size(grpc_codec.slow(message), grpc_codec.parse, message)
        caller = _patient(caller, callers.waits_s(caller.headers, request.parameters))
        response = await self._service.infer(message.model_name, message.model_version or None, request, caller)
        written = 0 if request.binary else sum(array.nbytes for array in response.outputs.values())
        return await aside.by_size(written, grpc_codec.render, response, request)


def _patient(caller: Caller, said_s: float | None) -> Caller:
    """The shorter of the call's deadline and what the request itself says."""
    told = [max(seconds, SOONEST_S) for seconds in (caller.deadline_s, said_s) if seconds is not None]
    return Caller(caller.request_id, caller.headers, min(told, default=None))
