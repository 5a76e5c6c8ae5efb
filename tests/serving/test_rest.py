"""The protocol over HTTP: addresses, refusals, bodies of every bad kind, keys. Without sockets; those are in test_http_server.py."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from asgi_case import Answered, ask, call, echo_bundle, mixed_bundle
from serving_case import BASELINE, INPUT, INT8, OUTPUT, tiny_bundle

from lowbit import __version__
from lowbit.serving.answer.fitting import shown
from lowbit.serving.protocol import aside, rest_codec
from lowbit.serving.protocol.requests import Wanted
from lowbit.serving.web import asgi
from lowbit.serving.web.asgi import App, Incoming
from lowbit.serving.web.rest import Rest
from small_models import images

TINY = "/v2/models/tiny"
INFER = f"{TINY}/infer"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("rest") / "tiny")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_bundle(tmp_path_factory.mktemp("rest") / "mixed")


def question(n: int = 1, **document: Any) -> bytes:
    x = images(n)
    return json.dumps(
        {"inputs": [{"name": INPUT, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}], **document}
    ).encode()


Work = Callable[[Rest], Awaitable[Any]]


def one(folder: Path, *request: Any, headers: dict[str, str] | None = None, query: str = "", **settings: Any) -> Answered:
    return ask([folder], lambda app: call(app, *request, headers=headers, query=query), **settings)


def test_facts(tiny: Path, mixed: Path) -> None:
    async def work(app: App) -> None:
        assert (await call(app, "GET", "/v2")).json == {
            "name": "lowbit",
            "version": __version__,
            "extensions": ["binary_tensor_data", "classification"],
        }
        for path in ("/v2/health/live", "/v2/health/ready", TINY + "/ready", f"{TINY}/ready/"):
            assert (await call(app, "GET", path)).status == 200, path
            assert (await call(app, "HEAD", path)).status == 200, path
        found = (await call(app, "GET", TINY)).json
        assert found["inputs"] == [{"name": INPUT, "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
        assert found["outputs"] == [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, 10]}]
        (version,) = found["versions"]
        assert (await call(app, "GET", f"{TINY}/versions/{version}")).json == found
        assert (await call(app, "POST", f"{TINY}/versions/{version}/infer", question())).json["model_version"] == version
        other = await call(app, "POST", f"{TINY}/versions/9/infer", question())
        assert (other.status, other.error) == (404, f"Model 'tiny' has no version '9'. Served: {version}.")
        mixed_types = {each["name"]: each["datatype"] for each in (await call(app, "GET", "/v2/models/mixed")).json["inputs"]}
        assert mixed_types == {"count": "INT64", "half": "FP16", "flag": "BOOL"}

    ask([tiny, mixed], work)


def test_a_server_that_stops_says_so(tiny: Path) -> None:
    async def work(app: Rest) -> None:
        app.service.leaving = True
        ready = await call(app, "GET", "/v2/health/ready")
        assert (ready.status, ready.headers["connection"]) == (503, "close")
        assert (await call(app, "GET", "/v2/health/live")).status == 200
        last = await call(app, "POST", INFER, question())
        assert (last.status, last.headers["connection"]) == (200, "close")
        app.service.draining = True
        late = await call(app, "POST", INFER, question())
        assert (late.status, late.error, late.headers["retry-after"]) == (503, "The server is stopping.", "1")

    ask([tiny], work)


def test_json_and_binary_give_the_runtimes_own_numbers(tiny: Path) -> None:
    x = images(3)

    async def work(app: Rest) -> None:
        variant = app.service.model("tiny").variant("chosen")
        assert variant is not None
        expected = variant.sessions.run({INPUT: x})[OUTPUT]
        plain = await call(app, "POST", INFER, question(3, id="a"))
        assert plain.headers["content-type"] == "application/json"
        assert (plain.json["id"], plain.json["model_name"]) == ("a", "tiny")
        assert plain.json["parameters"]["variant"] == INT8
        (output,) = plain.json["outputs"]
        assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected)

        entry = {"name": INPUT, "datatype": "FP32", "shape": [3, 3, 8, 8], "parameters": {"binary_data_size": x.nbytes}}
        head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True, "variant": "full"}}).encode()
        raw = await call(app, "POST", INFER, head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))})
        assert raw.headers["content-type"] == "application/octet-stream"
        length = int(raw.headers["inference-header-content-length"])
        document = json.loads(raw.body[:length])
        assert document["parameters"]["variant"] == BASELINE
        full = app.service.model("tiny").variant("full")
        assert full is not None
        assert raw.body[length:] == full.sessions.run({INPUT: x})[OUTPUT].tobytes()

    ask([tiny], work)


def test_classes_instead_of_a_tensor(tiny: Path) -> None:
    body = question(2, outputs=[{"name": OUTPUT, "parameters": {"classification": 3}}])

    async def work(app: Rest) -> None:
        logits = np.array((await call(app, "POST", INFER, question(2))).json["outputs"][0]["data"]).reshape(2, 10)
        (output,) = (await call(app, "POST", INFER, body)).json["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, 3])
        said = [value.split(":") for value in output["data"]]
        best = np.argsort(-logits, axis=1, kind="stable")[:, :3]
        assert [int(index) for _, index in said] == best.ravel().tolist()
        assert [float(value) for value, _ in said] == pytest.approx(np.take_along_axis(logits, best, 1).ravel(), abs=1e-6)

    ask([tiny], work)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        (np.array([[3, 200, 0, 7]], np.uint8), ["200.000000:1", "7.000000:3", "3.000000:0"]),
        (np.array([[-128, 127, 5, 5]], np.int8), ["127.000000:1", "5.000000:2", "5.000000:3"]),
        (np.array([[False, True, False]]), ["1.000000:1", "0.000000:0", "0.000000:2"]),
        (np.array([[np.nan, 1, np.inf]], np.float32), ["inf:2", "1.000000:1", "nan:0"]),
        (np.array([[1, 2, -3]], ml_dtypes.bfloat16), ["2.000000:1", "1.000000:0", "-3.000000:2"]),
        (np.array([7], np.uint64), ["7.000000:0"]),
    ],
)
def test_top_classes_of_every_kind_of_number(values: Any, best: list[str]) -> None:
    assert [each.decode() for each in shown(values, Wanted("y", None, 3))[0]] == best


def test_strings_have_no_top_classes_and_nobody_gets_more_than_a_thousand(tiny: Path, tmp_path: Path) -> None:
    words = {"name": "words", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}
    body = {"inputs": [words], "outputs": [{"name": "same", "parameters": {"classification": 1}}]}
    found = one(echo_bundle(tmp_path / "echo"), "POST", "/v2/models/echo/infer", json.dumps(body).encode())
    assert (found.status, found.error) == (400, "Output 'same' is strings: it has no top classes.")
    for top, status in ((1000, 200), (1001, 400), (2**70, 400)):
        asked = question(1, outputs=[{"name": OUTPUT, "parameters": {"classification": top}}])
        assert one(tiny, "POST", INFER, asked).status == status


def test_strings_come_back(tmp_path: Path) -> None:
    body = {"inputs": [{"name": "words", "datatype": "BYTES", "shape": [1, 2], "data": ["schön", ""]}]}
    found = one(echo_bundle(tmp_path / "echo"), "POST", "/v2/models/echo/infer", json.dumps(body).encode())
    assert found.json["outputs"] == [{"name": "same", "datatype": "BYTES", "shape": [1, 2], "data": ["schön", ""]}]


def tensor(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{"name": INPUT, "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0] * 192, **changes}]}).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (tensor(name="image"), "The model has no input 'image'. Its inputs: input.1."),
        (tensor(datatype="FP64"), "Input 'input.1' is FP64; the model takes FP32."),
        (tensor(shape=[1, 8, 8, 3]), "Input 'input.1' has shape [1, 8, 8, 3]; the model takes [any, 3, 8, 8]."),
        (tensor(shape=[192]), "has shape [192]; the model takes [any, 3, 8, 8]"),
        (tensor(shape=[0, 3, 8, 8], data=[]), "The inputs have no rows"),
        (question(outputs=[{"name": "probabilities"}]), "The model has no output 'probabilities'. Its outputs: logits."),
        (question(parameters={"timeout": 0}), "The parameter timeout must be microseconds above 0."),
        (question(parameters={"timeout": True}), "The parameter timeout must be microseconds above 0."),
        (question(parameters={"timeout": "soon"}), "The parameter timeout must be microseconds above 0."),
    ],
)
def test_what_does_not_fit_the_model_is_named(tiny: Path, body: bytes, words: str) -> None:
    found = one(tiny, "POST", INFER, body)
    assert found.status == 400
    assert words in found.error


def test_several_inputs_must_agree(mixed: Path) -> None:
    rows = [
        {"name": "count", "datatype": "INT64", "shape": [1, 4], "data": [1, 2, 3, 4]},
        {"name": "half", "datatype": "FP16", "shape": [1, 4], "data": [0.5, 1, 2, -4]},
        {"name": "flag", "datatype": "BOOL", "shape": [1, 4], "data": [True, False, True, False]},
    ]
    path = "/v2/models/mixed/infer"
    found = one(mixed, "POST", path, json.dumps({"inputs": rows}).encode()).json["outputs"]
    assert {each["name"]: each["data"] for each in found} == {
        "next": [2, 3, 4, 5],
        "twice": [1.0, 2.0, 4.0, -8.0],
        "not": [False, True, False, True],
    }
    few = one(mixed, "POST", path, json.dumps({"inputs": rows[:2]}).encode())
    assert (few.status, few.error) == (400, "Input 'flag' is missing. The model's inputs: count, half, flag.")
    rows[0] |= {"shape": [2, 4], "data": [1] * 8}
    uneven = one(mixed, "POST", path, json.dumps({"inputs": rows}).encode())
    assert (uneven.status, uneven.error) == (400, "The inputs have different numbers of rows: count 2, half 1, flag 1.")


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", INFER, 405, "POST"),
        ("DELETE", TINY, 405, "GET, HEAD"),
        ("POST", "/v2/health/live", 405, "GET, HEAD"),
        ("POST", "/v2", 405, "GET, HEAD"),
        ("GET", "/", 404, None),
        ("GET", "/v2/models", 404, None),
        ("GET", "/v2/models/tiny/stats", 404, None),
        ("GET", "/v2/models/other", 404, None),
        ("POST", "/v2/models/other/infer", 404, None),
        ("POST", "/v2/repository/index", 404, None),
    ],
)
def test_addresses_and_methods(tiny: Path, method: str, path: str, status: int, allow: str | None) -> None:
    found = one(tiny, method, path, question() if method == "POST" else b"")
    assert (found.status, found.headers.get("allow")) == (status, allow)
    assert found.error


# Bodies ----------------------------------------------------------------------------------------------------------------


def test_a_body_may_come_in_parts(tiny: Path) -> None:
    body = question()
    whole = one(tiny, "POST", INFER, body)
    parts = one(tiny, "POST", INFER, [body[:1], body[1:700], b"", body[700:]], headers={"transfer-encoding": "chunked"})
    assert parts.json["outputs"] == whole.json["outputs"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(tiny: Path) -> None:
    said = one(tiny, "POST", INFER, b"x" * 1001, max_body_bytes=1000)
    assert (said.status, said.error) == (413, "The body has 1,001 bytes; 1,000 are allowed.")
    unsaid = one(tiny, "POST", INFER, [b"x" * 600, b"x" * 600, b"x" * 600], headers={"content-length": ""}, max_body_bytes=1000)
    assert (unsaid.status, unsaid.error) == (413, "The body has more than 1,000 bytes, which is the limit.")


def test_bodies_together_have_a_limit(tiny: Path) -> None:
    async def work(app: Rest) -> None:
        app.service.held = 900  # another body is being answered
        full = await call(app, "POST", INFER, b"x" * 200)
        assert (full.status, full.headers["retry-after"]) == (503, "1")
        assert full.error == "Bodies of 900 bytes are being answered; 1,000 are allowed at once."
        assert app.service.held == 900
        app.service.held = 0
        alone = await call(app, "POST", INFER, question())  # always fits where there is no other
        assert (alone.status, app.service.held) == (200, 0)

    ask([tiny], work, max_held_bytes=1000)


def test_a_slow_body_is_given_up(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "LINGER_S", 0.05)

    async def work(app: Rest) -> Answered:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"{", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": INFER, "query_string": b"", "headers": [(b"content-length", b"999999")]}
        await app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answered(sent[0]["status"], headers, sent[1]["body"])

    found = ask([tiny], work, body_timeout_s=0.1)
    assert (found.status, found.headers["connection"]) == (408, "close")
    assert found.error == "The body was not here whole after 0.1 s."


@pytest.mark.parametrize("parts", [[b""], [b"{"], [question()[:500], question()[500:600]]])
def test_a_client_that_goes_gets_nothing_and_leaves_nothing(tiny: Path, parts: list[bytes]) -> None:
    async def work(app: Rest) -> None:
        found = await call(app, "POST", INFER, parts, {"content-length": "5000"}, gone=True)
        assert found.status == 0
        assert (app.service.held, app.service.inside) == (0, 0)
        assert (await call(app, "POST", INFER, question())).status == 200

    ask([tiny], work)


def test_a_client_that_goes_while_its_answer_is_made_gives_up_its_place() -> None:
    async def run() -> None:
        started, ended = asyncio.Event(), []

        async def slow() -> None:
            started.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        async def receive() -> dict[str, Any]:
            await started.wait()
            return {"type": "http.disconnect"}

        incoming = Incoming({"method": "POST", "path": "/", "query_string": b"", "headers": []}, receive)
        with pytest.raises(asgi.ClientGone):
            await incoming.unless_gone(slow())
        assert ended == ["cancelled"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress), ("identity", bytes)]
)
def test_packed_bodies_are_unpacked(tiny: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    body = question()
    found = one(tiny, "POST", INFER, pack(body), headers={"content-encoding": name})
    assert found.json["outputs"] == one(tiny, "POST", INFER, body).json["outputs"]


BOMB = gzip.compress(bytes(200 << 20), 9)


@pytest.mark.parametrize(
    ("name", "body", "status", "words"),
    [
        ("gzip", BOMB, 413, "The unpacked body has more than 1,000,000 bytes"),
        ("gzip", b"no gzip", 400, "The body is not gzip"),
        ("gzip", gzip.compress(question())[:-20], 400, "The gzip body ends too early"),
        ("gzip", gzip.compress(question()) + b"more", 400, "4 bytes follow the gzip body"),
        ("br", b"...", 400, "Content-Encoding 'br' is not known. Allowed: gzip, deflate."),
    ],
)
def test_packed_bodies_that_are_wrong(tiny: Path, name: str, body: bytes, status: int, words: str) -> None:
    found = one(tiny, "POST", INFER, body, headers={"content-encoding": name}, max_body_bytes=1_000_000)
    assert found.status == status
    assert words in found.error


def test_a_bomb_is_not_unpacked() -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(asgi.TooLarge):
        asyncio.run(asgi._unpacked(BOMB, "gzip", 1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


class Threads:
    """Where a function runs."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work = work
        self.seen: list[str] = []

    def __call__(self, *given: Any) -> Any:
        self.seen.append(threading.current_thread().name.rpartition("_")[0])
        return self.work(*given)


AWAY, HERE = "lowbit-prepare", ""


def test_what_takes_long_is_done_in_a_thread_and_small_things_are_not(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, render = Threads(rest_codec.parse), Threads(rest_codec.render)
    monkeypatch.setattr(rest_codec, "parse", parse)
    monkeypatch.setattr(rest_codec, "render", render)
    x = images(500)

    def binary(datatype: str = "FP32") -> tuple[bytes, dict[str, str]]:
        entry = {"name": INPUT, "datatype": datatype, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
        head = json.dumps({"inputs": [entry]}).encode()
        return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}

    async def work(app: Rest) -> None:
        for body, headers, status in ((question(1), {}, 200), (question(500), {}, 200), (*binary(), 200), (*binary("BYTES"), 400)):
            assert (await call(app, "POST", INFER, body, headers)).status == status
        assert parse.seen == [HERE, AWAY, HERE, AWAY]
        assert render.seen == [HERE] * 3
        monkeypatch.setattr(aside, "SMALL", 1000)
        found = await call(app, "POST", INFER, *binary())
        assert render.seen == [HERE] * 3 + [AWAY]
        assert found.json["outputs"][0]["shape"] == [500, 10]

    ask([tiny], work)


def test_the_loop_goes_on_while_a_large_body_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The large rest of it is unpacked in a thread; a small body is not."""
    away = Threads(lambda unpack, *given: unpack(*given))
    in_thread = aside.in_thread

    async def watched(*given: Any) -> Any:
        return await in_thread(away, *given)

    monkeypatch.setattr(aside, "in_thread", watched)
    for size, seen in ((1000, []), (aside.SMALL - 1, []), (aside.SMALL, [AWAY]), (5 << 20, [AWAY])):
        away.seen.clear()
        data = np.random.default_rng(0).bytes(size)
        assert asyncio.run(asgi._unpacked(gzip.compress(data, 1), "gzip", 5 << 20)) == data
        assert away.seen in (seen, []) if size == aside.SMALL else away.seen == seen


# Who asks --------------------------------------------------------------------------------------------------------------


def test_keys(tiny: Path) -> None:
    async def work(app: Rest) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "firs"}, {"authorization": "first-kéy"}):
            found = await call(app, "POST", INFER, question(), headers)
            assert (found.status, found.error[:22]) == (401, "An API key is needed: ")
            assert (await call(app, "GET", TINY, headers=headers)).status == 401
            assert (await call(app, "GET", "/v2", headers=headers)).status == 401
        for headers in (
            {"authorization": "Bearer first"},
            {"authorization": "bearer  first "},
            {"x-api-key": "second"},
            {"authorization": "Basic dTpw", "x-api-key": "second"},  # a proxy's own
            {"authorization": "Bearer proxy", "x-api-key": "second"},
        ):
            assert (await call(app, "POST", INFER, question(), headers)).status == 200
            assert (await call(app, "GET", TINY, headers=headers)).status == 200
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await call(app, "GET", path)).status == 200

    ask([tiny], work, api_keys=("first", "second"))


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("a\nb", False), ("x" * 129, False), ("", False)])
def test_request_ids_go_back_unless_they_could_forge_a_line(tiny: Path, given: str, kept: bool) -> None:
    for path in (INFER, "/v2/models/none/infer"):
        found = one(tiny, "POST", path, question(), headers={"x-request-id": given}).headers["x-request-id"]
        assert (found == given) == kept
        assert found.isprintable()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e99", "soon", ""])
def test_deadlines_that_are_none(tiny: Path, value: str) -> None:
    found = one(tiny, "POST", INFER, question(), headers={"x-request-timeout-ms": value})
    assert (found.status, found.error) == (400, "The header x-request-timeout-ms must be milliseconds above 0.")


@pytest.mark.parametrize("how", ["header", "parameter"])
def test_a_deadline_that_passes(tiny: Path, how: str) -> None:
    body, headers = (question(), {"x-request-timeout-ms": "0.001"}) if how == "header" else (question(parameters={"timeout": 1}), {})
    found = one(tiny, "POST", INFER, body, headers=headers)
    assert found.status == 504
    assert "deadline" in found.error


def test_a_fault_of_ours_says_nothing_of_the_inside(tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("lowbit.serving.protocol.rest_codec.parse", broken)
    found = one(tiny, "POST", INFER, question())
    assert (found.status, found.error) == (500, "The server failed on this request.")
    assert "ZeroDivisionError" in caplog.text
