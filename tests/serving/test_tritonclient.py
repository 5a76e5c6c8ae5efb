"""NVIDIA's client for the protocol, over HTTP and gRPC, against a real server in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi_case import echo_bundle, mixed_bundle
from clients_case import client
from serving_case import BASELINE, INT8, Running, running, tiny_bundle

from lowbit import __version__
from lowbit.bundle.bundle import Bundle
from small_models import images

WAYS = ("http", "grpc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    for make, name in ((tiny_bundle, "tiny"), (mixed_bundle, "mixed"), (echo_bundle, "echo")):
        make(folder / name)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(folder / "tiny", folder / "mixed", folder / "echo") as found:
        yield found


def address(server: Running, way: str) -> str:
    found = server.url.rpartition("/")[2] if way == "http" else server.grpc
    assert found is not None
    return found


@pytest.fixture(scope="module", params=WAYS)
def told(request: pytest.FixtureRequest, server: Running) -> tuple[str, dict[str, Any]]:
    """What the client was told; the way it asked."""
    return request.param, client("triton_client.py", request.param, address(server, request.param))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """Logits of both variants on the client's images, straight from the bundle."""
    bundle = Bundle.load(folder / "tiny")
    return {name: bundle.session(candidate=name).run(images(40))["logits"] for name in (INT8, BASELINE)}


def test_facts(told: tuple[str, dict[str, Any]]) -> None:
    _, found = told
    facts = found["facts"]
    assert [facts[name] for name in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert facts["server"] == {"name": "lowbit", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    assert facts["model"]["name"] == "tiny"
    (put,) = facts["model"]["inputs"]
    assert (put["name"], put["datatype"], [int(dim) for dim in put["shape"]]) == ("input.1", "FP32", [-1, 3, 8, 8])


def test_numbers_are_the_models_own(told: tuple[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    way, found = told
    numbers = found["numbers"]
    chosen, full = expected[INT8][:3], expected[BASELINE][:3]
    assert (numbers["id"], numbers["variant"]) == ("q1", INT8)
    for form in ("logits", "packed", *(["json"] if way == "http" else [])):
        assert np.array_equal(np.array(numbers[form], np.float32), chosen), form
    assert np.allclose(np.array(numbers["full"], np.float32), full, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(chosen, full)
    best = np.argsort(-chosen, axis=1, kind="stable")[:, :2]
    assert [[int(value.split(":")[1]) for value in row] for row in numbers["top"]] == best.tolist()


def test_types_and_several_inputs(told: tuple[str, dict[str, Any]]) -> None:
    _, found = told
    types = found["types"]
    assert types["values"] == {"next": [[2, -1, 4, 2**62 + 1]], "twice": [[1, 2, 4, -8]], "not": [[False, True, False, True]]}
    assert types["dtypes"] == {"next": "int64", "twice": "float16", "not": "bool"}
    assert types["some"] == [[[1, 2, 4, -8]], True]
    assert types["words"] == ["schön", ""]


CODES = {"NOT_FOUND": "404", "INVALID_ARGUMENT": "400", "DEADLINE_EXCEEDED": "504"}


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("model", "NOT_FOUND", "There is no model 'other'. Served: tiny, mixed, echo."),
        ("version", "NOT_FOUND", "Model 'tiny' has no version '7'."),
        ("shape", "INVALID_ARGUMENT", "Input 'input.1' has shape [1, 3, 8, 4]; the model takes [any, 3, 8, 8]."),
        ("name", "INVALID_ARGUMENT", "The model has no input 'image'. Its inputs: input.1."),
        ("datatype", "INVALID_ARGUMENT", "Input 'input.1' is FP64; the model takes FP32."),
        ("output", "INVALID_ARGUMENT", "The model has no output 'none'. Its outputs: logits."),
        ("deadline", "DEADLINE_EXCEEDED", "The deadline"),
        ("metadata", "NOT_FOUND", "There is no model 'other'."),
    ],
)
def test_refusals_come_as_the_clients_exception(told: tuple[str, dict[str, Any]], what: str, code: str, words: str) -> None:
    way, found = told
    status, message = found["errors"][what]
    assert status == (CODES[code] if way == "http" else f"StatusCode.{code}")
    assert words in message
    assert found["errors"]["after"] == 1


def test_everyone_gets_their_own_answer(told: tuple[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    way, found = told
    answers = np.array(found["together"], np.float32)[:, 0]
    assert np.array_equal(answers, expected[INT8]), way


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own making for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *names,
        "-keyout",
        "key.pem",
        "-out",
        "certificate.pem",
    ]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def safe(folder: Path, certificate: tuple[Path, Path]) -> Iterator[Running]:
    keys = folder / "keys.txt"
    keys.write_text("secret\n")
    options = ("--tls-certificate", certificate[0], "--tls-key", certificate[1], "--api-key-file", keys)
    with running(folder / "tiny", options=options) as found:
        yield found


@pytest.mark.parametrize("way", WAYS)
def test_keys_and_tls(safe: Running, certificate: tuple[Path, Path], way: str) -> None:
    assert safe.url.startswith("https://")
    found = client("triton_client.py", way, address(safe, way), "secret", certificate[0])
    status, message = found["refused"]
    assert status == ("401" if way == "http" else "StatusCode.UNAUTHENTICATED")
    assert message.startswith("An API key is needed")
    assert (found["allowed"], found["live"]) == (1, True)
