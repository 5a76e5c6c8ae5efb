"""The server's description is true: schemathesis holds it to a running server, jsonschema to real answers, a browser to 390 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_case import Answered, ask, call
from clients_case import run
from headless_chromium import Chromium
from jsonschema import Draft202012Validator
from serving_case import running, tiny_bundle
from test_predict import PNG, form, png
from test_rest import question

from lowbit.serving.web.openapi import Docs
from lowbit.serving.web.predict import Predict
from lowbit.serving.web.rest import Rest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("openapi") / "tiny")


def front(app: Rest) -> Rest:
    return Rest(app.service, Predict(app.service, Docs(app.service)))


def fetched(tiny: Path, path: str, **settings: Any) -> Answered:
    return ask([tiny], lambda app: call(front(app), "GET", path), **settings)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def test_the_document_is_whole(tiny: Path) -> None:
    document = fetched(tiny, "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert len(document["paths"]) == 13
    schemas = document["components"]["schemas"]
    assert {name.rpartition("/")[2] for name in references(document)} == set(schemas)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_answers_are_as_described(tiny: Path) -> None:
    async def work(app: Rest) -> None:
        fronted = front(app)
        document = (await call(fronted, "GET", "/openapi.json")).json

        def check(answer: Answered, path: str, method: str = "get") -> None:
            described = document["paths"][path][method]["responses"][str(answer.status)]
            schema = described["content"]["application/json"]["schema"]
            validator = Draft202012Validator({**schema, "components": document["components"]})
            assert [error.message for error in validator.iter_errors(answer.json)] == [], path

        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}", "/v2/models/{name}/ready"):
            check(await call(fronted, "GET", path.replace("{name}", "tiny")), path)
        check(await call(fronted, "GET", "/v2/models/other"), "/v2/models/{name}")
        infer, predict = "/v2/models/{name}/infer", "/v1/models/{name}/predict"
        for body in (question(2), question(outputs=[{"name": "logits", "parameters": {"classification": 2}}]), b"{"):
            check(await call(fronted, "POST", "/v2/models/tiny/infer", body), infer, "post")
        for given in ((png(), PNG), form(png(), png(1)), (b"", PNG), (b"", {"content-type": "text/css"})):
            check(await call(fronted, "POST", "/v1/models/tiny/predict", *given, query="top=2"), predict, "post")
        app.service.leaving = True
        for path in ("/v2/health/ready", "/v2/models/{name}/ready"):
            check(await call(fronted, "GET", path.replace("{name}", "tiny")), path)

    ask([tiny], work)


def test_with_keys_no_model_is_named_and_the_keys_are(tiny: Path) -> None:
    for path in ("/openapi.json", "/docs"):
        found = fetched(tiny, path, api_keys=("k",))
        assert found.status == 200
        assert b"tiny" not in found.body
        assert b"X-API-Key" in found.body
        assert b"tiny" in fetched(tiny, path).body
    document = fetched(tiny, "/openapi.json", api_keys=("k",)).json
    open_ones = [path for path, methods in document["paths"].items() for operation in methods.values() if "security" not in operation]
    assert open_ones == ["/v2/health/live", "/v2/health/ready"]


def test_other_methods_are_refused(tiny: Path) -> None:
    found = ask([tiny], lambda app: call(front(app), "POST", "/docs"))
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")
    assert fetched(tiny, "/nowhere").status == 404


def test_schemathesis_finds_nothing(tiny: Path) -> None:
    """Without two of its checks: which names and shapes a model takes is in no schema of the protocol, so what fits one may be refused;
    and 503 and 504 are answers here (it asks for deadlines of a nanosecond). That no answer was 500 is in the server's log."""
    with running(tiny, options=("--no-grpc",)) as server:
        options = ["--max-examples", "25", "--seed", "1", "--no-color", "--exclude-checks", "positive_data_acceptance,not_a_server_error"]
        done = run(
            "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--phases", "examples,coverage,fuzzing", *options, timeout_s=200
        )
        logged = server.logged()
        assert server.process.poll() is None
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "13 selected / 13 total" in done.stdout
    refused = [json.loads(line) for line in logged.splitlines()]
    assert len(refused) > 100
    assert {each.get("status") for each in refused} & {500, 501, 502} == set()
    assert [each for each in refused if "trace" in each] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_readable_and_asks_for_nothing(browser: Chromium, tiny: Path, tmp_path: Path, width: int) -> None:
    found = fetched(tiny, "/docs")
    assert found.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    file = tmp_path / "docs.html"
    file.write_bytes(found.body.replace(b"<details>", b"<details open>"))
    page = browser.open(file, width, dark=width == 390)
    assert page.urls == [file.resolve().as_uri()]
    assert page.messages == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('details').length") == 13
    text = browser.evaluate("document.body.innerText")
    assert "input.1 FP32 [any, 3, 8, 8]" in text
    assert text.count("curl") == 13
