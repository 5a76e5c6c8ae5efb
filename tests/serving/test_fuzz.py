"""10,000 malformed requests and broken files: never a crash, never a fault of ours, and the next answer is right and its own."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzzer
import numpy as np
import pytest
from asgi_case import ask, call, echo_bundle, mixed_bundle
from PIL import Image
from serving_case import INPUT, OUTPUT, Running, running, tiny_bundle

from lowbit.serving.web.predict import Predict
from lowbit.serving.web.rest import Rest
from small_models import images

IN_PROCESS, OVER_SOCKETS, FILES = 9_500, 500, 2_000
ALLOWED = {200, 400, 404, 405, 408, 413, 415, 503, 504}
"""Never 500: that is a fault of ours."""
EVERY = 4
"""After so many wrong ones comes a right one."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    return [make(folder / name) for make, name in ((tiny_bundle, "tiny"), (mixed_bundle, "mixed"), (echo_bundle, "echo"))]


@pytest.fixture(scope="module")
def server(folders: list[Path]) -> Iterator[Running]:
    with running(*folders, options=("--no-grpc",)) as found:
        yield found


def right(row: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """A valid binary request for one image."""
    entry = {"name": INPUT, "datatype": "FP32", "shape": [1, 3, 8, 8], "parameters": {"binary_data_size": row.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return head + row.tobytes(), {"inference-header-content-length": str(len(head))}


def check_refusal(status: int, body: bytes, seed: int) -> None:
    assert status in ALLOWED, f"seed {seed}: {status} {body[:300]!r}"
    if status != 200:
        assert json.loads(body)["error"], f"seed {seed}"


def test_malformed_requests_in_process(folders: list[Path]) -> None:
    rows = images(64, seed=5)

    async def work(app: Rest) -> dict[int, int]:
        variant = app.service.model("tiny").variant("chosen")
        assert variant is not None
        expected = variant.sessions.run({INPUT: rows})[OUTPUT]
        counts: dict[int, int] = {}
        for seed in range(IN_PROCESS):
            request = fuzzer.wrong(seed)
            body, headers = request.wire()
            found = await call(app, "POST", request.path, body, headers)
            check_refusal(found.status, found.body, seed)
            counts[found.status] = counts.get(found.status, 0) + 1
            if seed % EVERY == 0:
                own = seed // EVERY % len(rows)
                body, headers = right(rows[own : own + 1])
                good = await call(app, "POST", "/v2/models/tiny/infer", body, headers)
                assert good.status == 200, f"after seed {seed}: {good.body!r}"
                assert good.body[int(good.headers["inference-header-content-length"]) :] == expected[own].tobytes(), f"after seed {seed}"
        assert (app.service.inside, app.service.held) == (0, 0)
        return counts

    counts = ask(folders, work)
    assert counts[400] > 0.7 * IN_PROCESS, counts
    assert counts.get(200, 0) < 0.2 * IN_PROCESS, counts


def test_malformed_requests_over_sockets(server: Running, folders: list[Path]) -> None:
    """On a connection that is kept open where the server keeps it: what one request leaves behind would meet the next."""
    from lowbit.bundle.bundle import Bundle

    rows = images(16, seed=6)
    expected = Bundle.load(folders[0]).session().run(rows)[OUTPUT]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for seed in range(IN_PROCESS, IN_PROCESS + OVER_SOCKETS):
        request = fuzzer.wrong(seed)
        body, headers = request.wire()
        path = request.path.encode("ascii", "ignore").decode()
        connection.request(
            "POST", path, body, {name: value.encode("latin-1", "ignore").decode("latin-1") for name, value in headers.items()}
        )
        answer = connection.getresponse()
        check_refusal(answer.status, answer.read(), seed)
        own = seed % len(rows)
        body, headers = right(rows[own : own + 1])
        connection.request("POST", "/v2/models/tiny/infer", body, headers)
        answer = connection.getresponse()
        length = answer.getheader("inference-header-content-length")
        assert answer.status == 200, f"after seed {seed}"
        assert answer.read()[int(length or 0) :] == expected[own].tobytes(), f"after seed {seed}"
    connection.close()
    assert server.process.poll() is None
    assert "Traceback" not in server.logged()


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (13, 17, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def broken(good: bytes, rng: random.Random) -> bytes:
    """Cut, with bytes changed, or both."""
    body = bytearray(good)
    for _ in range(rng.randint(1, 10)):
        body[rng.randrange(len(body))] = rng.getrandbits(8)
    return bytes(body[: rng.randrange(len(body) + 1)] if rng.random() < 0.3 else body)


def test_broken_files(folders: list[Path]) -> None:
    files = [(f"image/{kind.lower()}", encoded(kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    form = b'--B\r\ncontent-disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + encoded("PNG") + b"\r\n--B--\r\n"
    rows: list[Any] = [
        [1, 2],
        {"image": "aGFsbG8="},
        {"samples": [[[1, 2], [3, 4]]], "parameters": {"variant": "full"}},
        "data:;base64,aGFsbG8=",
    ]
    files += [("multipart/form-data; boundary=B", form), *(("application/json", json.dumps(row).encode()) for row in rows)]

    async def work(app: Rest) -> set[int]:
        front = Rest(app.service, Predict(app.service))
        seen = set()
        for seed, (kind, good) in zip(range(FILES), itertools.cycle(files)):
            found = await call(front, "POST", "/v1/models/tiny/predict", broken(good, random.Random(seed)), {"content-type": kind})
            check_refusal(found.status, found.body, seed)
            seen.add(found.status)
        good = await call(front, "POST", "/v1/models/tiny/predict", encoded("PNG"), {"content-type": "image/png"})
        assert good.status == 200
        return seen

    assert {200, 400} <= ask(folders, work)
