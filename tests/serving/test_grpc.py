"""The protocol over gRPC, asked with bare messages: typed and raw contents, status codes, deadlines, limits, streams, health."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from asgi_case import echo_bundle, mixed_bundle, served
from clients_case import run
from serving_case import BASELINE, INPUT, INT8, OUTPUT, tiny_bundle

from lowbit.errors import UsageError
from lowbit.serving.protocol import grpc_codec, grpc_messages, wire
from lowbit.serving.protocol.grpc_messages import SERVICE, messages
from lowbit.serving.protocol.refusals import Malformed
from lowbit.serving.protocol.requests import InferRequest, InferResponse
from lowbit.serving.rpc import grpc_server
from lowbit.serving.rpc.grpc_server import start_grpc
from lowbit.serving.service import Service
from small_models import images

M = messages()
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("grpc")
    return [make(folder / name) for make, name in ((tiny_bundle, "tiny"), (mixed_bundle, "mixed"), (echo_bundle, "echo"))]


class Client:
    """Calls with messages, or with any bytes."""

    def __init__(self, channel: grpc.aio.Channel, service: Service) -> None:
        self.channel, self.service = channel, service

    async def __call__(self, method: str, message: Any = b"", **more: Any) -> Any:
        """The response's message."""
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        service, _, name = method.rpartition("/")
        found = await self.channel.unary_unary(f"/{service or SERVICE}/{name}")(raw, **{"timeout": 20, **more})
        return M[f"{name}Response" if name != "Check" else "HealthCheckResponse"].FromString(found)

    async def refused(self, method: str, message: Any = b"", **more: Any) -> tuple[grpc.StatusCode, str]:
        """Code and message of the refusal that must come."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self(method, message, **more)
        return caught.value.code(), caught.value.details() or ""


def with_client(folders: list[Path], work: Callable[[Client], Awaitable[Any]], **settings: Any) -> Any:
    async def go() -> Any:
        with served(*folders, grpc_port=0, **settings) as service:
            server = await start_grpc(service, service.settings)
            try:
                async with grpc.aio.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
                    return await work(Client(channel, service))
            finally:
                await server.stop(0)

    return asyncio.run(go())


def question(x: Any, name: str = INPUT, datatype: str = "FP32", model: str = "tiny", raw: bool = True, **fields: Any) -> Any:
    message = M["ModelInferRequest"](model_name=model, **fields)
    entry = message.inputs.add(name=name, datatype=datatype, shape=x.shape)
    if raw:
        message.raw_input_contents.append(wire.to_bytes(x))
    else:
        getattr(entry.contents, grpc_codec.CONTENTS[datatype]).extend(wire.to_values(x))
    return message


def test_the_messages_are_the_protocols() -> None:
    """Against tritonclient's: every field of ours has its number, type and label there."""
    script = (
        "import json\nfrom tritonclient.grpc import service_pb2 as s\n"
        "def of(m, prefix=''):\n"
        "    out = {prefix + m.name: {f.name: [f.number, f.type, f.is_repeated if hasattr(f, 'is_repeated') else f.label == 3,"
        " f.containing_oneof.name if f.containing_oneof else None] for f in m.fields}}\n"
        "    for n in m.nested_types: out |= of(n, prefix + m.name + '.')\n"
        "    return out\n"
        "found = {}\n[found.update(of(m)) for m in s.DESCRIPTOR.message_types_by_name.values()]\nprint(json.dumps(found))"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    import json

    theirs = json.loads(done.stdout.splitlines()[-1])
    compared = 0
    for name in grpc_messages.TABLE:
        ours = {
            field.name: [field.number, field.type, field.is_repeated, field.containing_oneof.name if field.containing_oneof else None]
            for field in M[name].DESCRIPTOR.fields
        }
        assert ours == theirs[name], name
        compared += len(ours)
    assert compared > 50


@pytest.mark.parametrize("raw", [True, False])
def test_numbers_are_the_models_own(folders: list[Path], raw: bool) -> None:
    x = images(3)

    async def work(client: Client) -> None:
        for role, id in (("chosen", INT8), ("full", BASELINE)):
            variant = client.service.model("tiny").variant(role)
            assert variant is not None
            expected = variant.sessions.run({INPUT: x})[OUTPUT]
            message = question(x, raw=raw, id="7")
            message.parameters["variant"].string_param = role
            found = await client("ModelInfer", message)
            assert (found.model_name, found.id, found.parameters["variant"].string_param) == ("tiny", "7", id)
            (output,) = found.outputs
            assert (output.name, output.datatype, list(output.shape)) == (OUTPUT, "FP32", [3, 10])
            assert bool(found.raw_output_contents) == raw  # the answer has the request's form
            values = np.frombuffer(found.raw_output_contents[0], "<f4") if raw else np.array(output.contents.fp32_contents, np.float32)
            assert np.array_equal(values.reshape(3, 10), expected)

    with_client(folders[:1], work)


TYPED = {
    "BOOL": np.array([[True, False]]),
    **{
        name: np.array([[3, 100]], wire.numpy_dtype(name))
        for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
    },
    "FP32": np.array([[0.5, np.inf]], np.float32),
    "FP64": np.array([[1e300, -0.0]]),
    "BYTES": np.array([["a", "schön"]], object),
}


@pytest.mark.parametrize("datatype", [*TYPED, "FP16", "BF16"])
def test_every_datatype_there_and_back(datatype: str) -> None:
    array = TYPED.get(datatype, np.array([[0.5, -2]], np.float16 if datatype == "FP16" else ml_dtypes.bfloat16))
    for raw in (True, False):
        if not raw and datatype not in TYPED:
            message = question(array, datatype=datatype)
            del message.raw_input_contents[:]
            with pytest.raises(Malformed, match=f"is {datatype}, which travels in raw_input_contents alone"):
                grpc_codec.parse(message)
            continue
        request = grpc_codec.parse(question(array, datatype=datatype, raw=raw))
        back = request.inputs[INPUT]
        assert request.binary == raw
        assert back.dtype == array.dtype
        assert back.tolist() == array.tolist()
        answer = grpc_codec.render(InferResponse("m", "1", {"y": array}), request)
        assert bool(answer.raw_output_contents) == raw
        if raw:
            assert wire.from_bytes("y", datatype, [1, 2], answer.raw_output_contents[0]).tolist() == array.tolist()
        else:
            values = list(getattr(answer.outputs[0].contents, grpc_codec.CONTENTS[datatype]))
            assert wire.from_values("y", datatype, [1, 2], values).tolist() == array.tolist()
    mixed = grpc_codec.render(InferResponse("m", "1", {"a": array, "h": np.ones((1, 2), np.float16)}), InferRequest({}, binary=False))
    assert len(mixed.raw_output_contents) == 2  # FP16 has no typed form, and raw is for all or none


def changed(**fields: Any) -> Any:
    message = question(images(1))
    for name, value in fields.items():
        setattr(message.inputs[0], name, value)
    return message


def several(change: Callable[[Any], Any], raw: bool = True) -> Any:
    message = question(images(1), raw=raw)
    change(message)
    return message


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (b"\xff\xff\xff", CODE.INVALID_ARGUMENT, "The message is no ModelInferRequest."),
        (M["ModelInferRequest"](model_name="tiny"), CODE.INVALID_ARGUMENT, "The request has no inputs."),
        (M["ModelInferRequest"](), CODE.INVALID_ARGUMENT, "The request has no inputs."),
        (question(images(1), model="other"), CODE.NOT_FOUND, "There is no model 'other'. Served: tiny."),
        (question(images(1), model_version="9"), CODE.NOT_FOUND, "Model 'tiny' has no version '9'."),
        (changed(name="image"), CODE.INVALID_ARGUMENT, "The model has no input 'image'."),
        (changed(name=""), CODE.INVALID_ARGUMENT, "An input of the request lacks 'name' or 'datatype'."),
        (changed(datatype="FP64"), CODE.INVALID_ARGUMENT, "has 768 bytes; FP64 of shape [1, 3, 8, 8] has 1536."),
        (changed(datatype="FP23"), CODE.INVALID_ARGUMENT, "Datatype 'FP23' is not known."),
        (several(lambda m: m.inputs[0].shape.append(-1)), CODE.INVALID_ARGUMENT, "'input.1' needs a shape"),
        (several(lambda m: m.raw_input_contents.append(b"")), CODE.INVALID_ARGUMENT, "has 1 inputs and 2 raw_input_contents"),
        (several(lambda m: m.inputs[0].contents.fp32_contents.append(1)), CODE.INVALID_ARGUMENT, "both contents and raw_input_contents"),
        (several(lambda m: m.inputs[0].contents.fp32_contents.pop(), raw=False), CODE.INVALID_ARGUMENT, "has 191 values; shape"),
        (
            several(lambda m: m.inputs[0].contents.fp64_contents.append(1), raw=False),
            CODE.INVALID_ARGUMENT,
            "are in fp64_contents; those of FP32",
        ),
        (several(lambda m: m.parameters["a"]), CODE.INVALID_ARGUMENT, "The parameter 'a' has no value."),
        (several(lambda m: m.outputs.add(name="none")), CODE.INVALID_ARGUMENT, "The model has no output 'none'."),
        (several(lambda m: m.outputs.add(name="")), CODE.INVALID_ARGUMENT, "lacks 'name'"),
        (several(lambda m: setattr(m.parameters["variant"], "string_param", "int3")), CODE.NOT_FOUND, "int3"),
        (several(lambda m: setattr(m.parameters["timeout"], "int64_param", -1)), CODE.INVALID_ARGUMENT, "microseconds above 0"),
        (
            several(lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r")),
            CODE.INVALID_ARGUMENT,
            "in shared memory, which is not served",
        ),
    ],
)
def test_what_is_wrong_is_named(folders: list[Path], message: Any, code: grpc.StatusCode, words: str) -> None:
    found, why = with_client(folders[:1], lambda client: client.refused("ModelInfer", message))
    assert (found, words in why) == (code, True), (found, why)


def test_facts_and_health(folders: list[Path]) -> None:
    async def work(client: Client) -> None:
        assert (await client("ServerLive")).live
        assert (await client("ServerReady")).ready
        assert (await client("ModelReady", M["ModelReadyRequest"](name="tiny"))).ready
        assert not (await client("ModelReady", M["ModelReadyRequest"](name="other"))).ready
        assert (await client("ServerMetadata")).name == "lowbit"
        found = await client("ModelMetadata", M["ModelMetadataRequest"](name="mixed"))
        assert (found.inputs[0].name, found.inputs[0].datatype, list(found.inputs[0].shape)) == ("count", "INT64", [-1, 4])
        for name, status in (("", 1), (SERVICE, 1), ("tiny", 1), ("other", 3)):
            assert (await client("grpc.health.v1.Health/Check", M["HealthCheckRequest"](service=name))).status == status
        client.service.leaving = True
        assert not (await client("ServerReady")).ready
        assert (await client("grpc.health.v1.Health/Check")).status == 2
        client.service.draining = True
        call = client.channel.unary_unary(f"/{SERVICE}/ModelInfer")(question(images(1)).SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert (caught.value.code(), caught.value.details()) == (CODE.UNAVAILABLE, "The server is stopping.")
        assert dict(caught.value.trailing_metadata())["retry-after"] == "1"

    with_client(folders, work)


def test_keys_and_request_ids(folders: list[Path]) -> None:
    async def work(client: Client) -> None:
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            for method in ("ModelInfer", "ModelMetadata", "ServerMetadata", "ModelReady"):
                code, why = await client.refused(method, metadata=metadata)
                assert (code, why[:21]) == (CODE.UNAUTHENTICATED, "An API key is needed:")
        assert (await client("ServerLive")).live
        call = client.channel.unary_unary(f"/{SERVICE}/ModelInfer")(
            question(images(1)).SerializeToString(), metadata=(("x-api-key", "k"), ("x-request-id", "mine"))
        )
        await call
        assert dict(await call.trailing_metadata())["x-request-id"] == "mine"

    with_client(folders[:1], work, api_keys=("k",))


def test_a_call_without_a_key_is_refused_before_its_message_is_read(folders: list[Path]) -> None:
    """A message over the limit: only who reads it can know."""
    large = question(np.zeros((20_000, 3, 8, 8), np.float32))

    async def work(client: Client) -> None:
        for method in ("ModelInfer", "ModelMetadata", "ModelReady"):
            assert (await client.refused(method, large))[0] == CODE.UNAUTHENTICATED
        assert (await client.refused("ModelInfer", large, metadata=(("x-api-key", "k"),)))[0] == CODE.RESOURCE_EXHAUSTED

    with_client(folders[:1], work, api_keys=("k",), max_body_bytes=1_000_000)


def test_messages_count_as_bodies_that_are_held(folders: list[Path]) -> None:
    async def work(client: Client) -> None:
        started, go_on, answer = asyncio.Event(), asyncio.Event(), client.service.answers.answer

        async def slow(*given: Any) -> Any:
            started.set()
            await go_on.wait()
            return await answer(*given)

        client.service.answers.answer = slow  # type: ignore[method-assign, assignment]
        message = question(images(1))
        first = asyncio.create_task(client("ModelInfer", message))
        await started.wait()
        assert client.service.held == message.ByteSize()
        code, why = await client.refused("ModelInfer", message)
        assert (code, "1,500 are allowed at once" in why) == (CODE.UNAVAILABLE, True)
        stream = client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([message.SerializeToString()]))
        (refused,) = [M["ModelStreamInferResponse"].FromString(raw) async for raw in stream]
        assert "1,500 are allowed at once" in refused.error_message
        go_on.set()
        assert len((await first).outputs) == 1
        assert client.service.held == 0

    with_client(folders[:1], work, max_body_bytes=1500, max_held_bytes=1500)


def test_so_many_messages_are_on_their_way_as_fit_and_none_for_ever(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for one. A client that never sends it is given up, and the next one has its turn."""
    order: list[str] = []
    came, caller = asyncio.Event(), grpc_server._caller

    def watched(context: grpc.aio.ServicerContext) -> Any:
        came.set()
        return caller(context)

    monkeypatch.setattr(grpc_server, "_caller", watched)

    async def work(client: Client) -> None:
        stuck = client.channel.stream_unary(f"/{SERVICE}/ModelInfer")()
        stuck.add_done_callback(lambda _: order.append("stuck"))
        await came.wait()
        next_one = asyncio.create_task(client("ModelInfer", question(images(1))))
        next_one.add_done_callback(lambda _: order.append("next"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stuck
        assert (caught.value.code(), caught.value.details()) == (CODE.DEADLINE_EXCEEDED, "The message was not here whole after 0.5 s.")
        assert len((await next_one).outputs) == 1
        assert order == ["stuck", "next"]

    with_client(folders[:1], work, max_body_bytes=1500, max_held_bytes=2000, body_timeout_s=0.5)


def test_streams_have_a_limit(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "STREAMS", 1)

    async def work(client: Client) -> None:
        method, message = f"/{SERVICE}/ModelStreamInfer", question(images(1)).SerializeToString()
        first = client.channel.stream_stream(method)()
        await first.write(message)
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [raw async for raw in client.channel.stream_stream(method)(iter([message]))]
        assert (caught.value.code(), caught.value.details()) == (CODE.UNAVAILABLE, "1 streams are open, which is the limit.")
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        again = client.channel.stream_stream(method)(iter([message]))
        assert len([raw async for raw in again]) == 1

    with_client(folders[:1], work)


def test_a_call_that_ends_without_a_message(folders: list[Path]) -> None:
    async def work(client: Client) -> None:
        call = client.channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter([]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert (caught.value.code(), caught.value.details()) == (CODE.INVALID_ARGUMENT, "The call ended without a message.")

    with_client(folders[:1], work)


def test_failures_of_ours_are_counted(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(grpc_codec, "parse", broken)
    seen: list[str] = []

    async def work(client: Client) -> None:
        monkeypatch.setattr(client.service, "refused", lambda refusal, *_: seen.append(refusal.message))
        expected = (CODE.INTERNAL, "The server failed on this request.")
        assert await client.refused("ModelInfer", question(images(1))) == expected
        stream = client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([question(images(1)).SerializeToString()]))
        assert [M["ModelStreamInferResponse"].FromString(raw).error_message async for raw in stream] == [expected[1]]
        assert seen == [expected[1]] * 2

    with_client(folders[:1], work)


def test_large_typed_contents_are_read_in_a_thread(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[bool, set[str]] = {}
    parse = grpc_codec.parse

    def watched(message: Any) -> Any:
        threads.setdefault(bool(message.raw_input_contents), set()).add(threading.current_thread().name)
        return parse(message)

    monkeypatch.setattr(grpc_codec, "parse", watched)

    async def work(client: Client) -> None:
        for raw in (True, False):
            assert list((await client("ModelInfer", question(images(400), raw=raw))).outputs[0].shape) == [400, 10]
        assert threads[True] == {threading.main_thread().name}
        assert all(name.startswith("lowbit-prepare") for name in threads[False])

    with_client(folders[:1], work)


def test_deadlines(folders: list[Path]) -> None:
    """The call's own and the request's; the server ends first only where it knows of it."""
    late = question(images(1))
    late.parameters["timeout"].int64_param = 1

    async def work(client: Client) -> None:
        assert await client.refused("ModelInfer", late) == (CODE.DEADLINE_EXCEEDED, "The deadline had passed when the request came.")
        assert (await client.refused("ModelInfer", question(images(1)), metadata=(("x-request-timeout-ms", "0"),)))[
            0
        ] == CODE.INVALID_ARGUMENT
        assert len((await client("ModelInfer", question(images(1)))).outputs) == 1

        async def never(*_: Any) -> None:
            await asyncio.Event().wait()

        client.service.answers.answer = never  # type: ignore[method-assign, assignment]
        assert (await client.refused("ModelInfer", question(images(1)), timeout=0.2))[0] == CODE.DEADLINE_EXCEEDED

    with_client(folders[:1], work)


def test_a_call_that_is_given_up_leaves_its_place(folders: list[Path]) -> None:
    async def work(client: Client) -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def slow(*_: Any) -> Any:
            started.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.set()
                raise

        client.service.answers.answer = slow  # type: ignore[method-assign, assignment]
        asking = asyncio.create_task(client("ModelInfer", question(images(1))))
        await started.wait()
        assert client.service.inside == 1
        asking.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        assert client.service.inside == 0

    with_client(folders[:1], work)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_messages_have_a_limit_packed_or_not(folders: list[Path], compression: grpc.Compression) -> None:
    """Zeros pack a thousandfold: what counts is what they are unpacked."""
    large = question(np.zeros((20_000, 3, 8, 8), np.float32))

    async def work(client: Client) -> None:
        code, _ = await client.refused("ModelInfer", large, compression=compression)
        assert code == CODE.RESOURCE_EXHAUSTED
        assert len((await client("ModelInfer", question(images(1)), compression=compression)).outputs) == 1

    with_client(folders[:1], work, max_body_bytes=1_000_000)


def test_streams_answer_in_order_and_outlive_refusals(folders: list[Path]) -> None:
    rows = images(30)

    async def work(client: Client) -> None:
        variant = client.service.model("tiny").variant("chosen")
        assert variant is not None
        expected = variant.sessions.run({INPUT: rows})[OUTPUT]
        sent = [question(rows[n : n + 1], id=str(n)).SerializeToString() for n in range(30)]
        sent[7], sent[20] = question(rows[:1], model="other", id="7").SerializeToString(), b"\xff\xff"
        stream = client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(sent))
        found = [M["ModelStreamInferResponse"].FromString(raw) async for raw in stream]
        assert len(found) == 30
        for n, answer in enumerate(found):
            if n == 7:
                assert (answer.infer_response.id, answer.error_message[:23]) == ("7", "There is no model 'othe")
            elif n == 20:
                assert answer.error_message == "The message is no ModelInferRequest."
            else:
                assert (answer.error_message, answer.infer_response.id) == ("", str(n))
                assert answer.infer_response.raw_output_contents[0] == expected[n].tobytes()

    with_client(folders[:1], work)


def test_broken_messages(folders: list[Path]) -> None:
    """1,000 messages with bytes changed or cut: a status, never a fault of ours, and the next answer is right."""
    good = question(images(1)).SerializeToString()

    async def work(client: Client) -> None:
        expected = (await client("ModelInfer", good)).raw_output_contents[0]
        seen: dict[grpc.StatusCode, int] = {}
        for seed in range(1000):
            rng = random.Random(seed)
            body = bytearray(good)
            for _ in range(rng.randint(1, 6)):
                body[rng.randrange(60)] = rng.getrandbits(8)
            try:
                await client("ModelInfer", bytes(body[: rng.randrange(len(body))] if rng.random() < 0.2 else body))
            except grpc.aio.AioRpcError as error:
                seen[error.code()] = seed
            if seed % 50 == 0:
                assert (await client("ModelInfer", good)).raw_output_contents[0] == expected
        assert set(seen) == {CODE.INVALID_ARGUMENT, CODE.NOT_FOUND}, seen

    with_client(folders[:1], work)


def test_a_busy_port_is_said_so(folders: list[Path]) -> None:
    async def go() -> None:
        with served(folders[0], grpc_port=0) as service:
            first = await start_grpc(service, service.settings)
            with served(grpc_port=first.port) as second, pytest.raises(UsageError, match=f":{first.port} for gRPC"):
                await start_grpc(second, second.settings)
            await first.stop(0)

    asyncio.run(go())
