"""Valid requests, and the same gone wrong: lengths, sizes, shapes, types, bytes. Every one follows from its seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit.serving.protocol.wire import DATATYPES

WEIRD: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**80,
    1e308,
    0.5,
    True,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    "é" * 40,
)
LENGTHS = ("", "0", "1", "-1", "+5", "1e3", "0x10", "  7", "99999999999999999999999", "NaN", "1,1", "\xb2")


@dataclass
class Request:
    """A request before it is bytes."""

    path: str
    document: Any
    raw: bytes
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    flips: tuple[tuple[int, int], ...] = ()
    tail: bytes = b""

    def wire(self) -> tuple[bytes, dict[str, str]]:
        """Body and headers."""
        head = json.dumps(self.document).encode()
        body = bytearray(head + self.raw + self.tail)
        for position, value in self.flips:
            if body:
                body[position % len(body)] = value
        found = bytes(body if self.cut is None else body[: self.cut % (len(body) + 1)])
        return found, {"inference-header-content-length": str(len(head)), **self.headers}


def valid(rng: random.Random) -> Request:
    """One of three models, in binary form or partly in JSON."""
    model = rng.choice(("tiny", "mixed", "echo"))
    n = rng.randint(1, 3)
    made = np.random.default_rng(rng.getrandbits(32))
    tensors: dict[str, tuple[str, list[int], bytes, list[Any]]] = {}
    if model == "tiny":
        x = made.uniform(-1, 1, (n, 3, 8, 8)).astype(np.float32)
        tensors["input.1"] = ("FP32", [n, 3, 8, 8], x.tobytes(), x.ravel().tolist())
    elif model == "mixed":
        for name, datatype, array in (
            ("count", "INT64", made.integers(-9, 9, (n, 4))),
            ("half", "FP16", made.normal(size=(n, 4)).astype(np.float16)),
            ("flag", "BOOL", made.random((n, 4)) < 0.5),
        ):
            tensors[name] = (datatype, [n, 4], array.tobytes(), array.ravel().tolist())
    else:
        words = [rng.choice(("", "a", "zwölf", "x" * 50)) for _ in range(2 * n)]
        raw = b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in words)
        tensors["words"] = ("BYTES", [n, 2], raw, words)
    inputs, bodies = [], []
    for name, (datatype, shape, raw, values) in tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if rng.random() < 0.75:
            entry["parameters"] = {"binary_data_size": len(raw)}
            bodies.append(raw)
        else:
            entry["data"] = values
        inputs.append(entry)
    document: dict[str, Any] = {"id": str(rng.getrandbits(30)), "inputs": inputs}
    if rng.random() < 0.5:
        document["parameters"] = {"binary_data_output": rng.random() < 0.5}
    return Request(f"/v2/models/{model}/infer", document, b"".join(bodies))


def wrong(seed: int) -> Request:
    """A valid request with one to three things wrong; now and then what was changed does not matter and it stays valid."""
    rng = random.Random(seed)
    request = valid(rng)
    for _ in range(rng.randint(1, 3)):
        rng.choice(CHANGES)(request, rng)
    return request


def _anywhere(request: Request, rng: random.Random, change: Callable[[Any, Any], None]) -> None:
    """Changes a random place of the document."""
    node = request.document
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            change(node, key)
            return
        node = node[key]


def _replace(request: Request, rng: random.Random) -> None:
    value = copy.deepcopy(rng.choice(WEIRD))
    _anywhere(request, rng, lambda node, key: node.__setitem__(key, value))


def _remove(request: Request, rng: random.Random) -> None:
    _anywhere(request, rng, lambda node, key: node.pop(key))


def _double(request: Request, rng: random.Random) -> None:
    if isinstance(request.document, dict) and isinstance(request.document.get("inputs"), list) and request.document["inputs"]:
        request.document["inputs"].append(copy.deepcopy(rng.choice(request.document["inputs"])))


def _entry(request: Request, rng: random.Random) -> dict[str, Any] | None:
    inputs = request.document.get("inputs") if isinstance(request.document, dict) else None
    found = rng.choice(inputs) if isinstance(inputs, list) and inputs else None
    return found if isinstance(found, dict) else None


def _size(request: Request, rng: random.Random) -> None:
    entry = _entry(request, rng)
    if entry and isinstance(entry.get("parameters"), dict):
        size = entry["parameters"].get("binary_data_size")
        step = rng.choice((-8, -4, -1, 1, 4, 2**20, -(2**20)))
        entry["parameters"]["binary_data_size"] = size + step if isinstance(size, int) else step


def _shape(request: Request, rng: random.Random) -> None:
    entry = _entry(request, rng)
    if entry and isinstance(entry.get("shape"), list):
        shape = entry["shape"]
        change = rng.randrange(4)
        if change == 0:
            shape.append(rng.choice((0, 1, 2, 2**31 - 1, -1)))
        elif change == 1 and shape:
            shape.pop(rng.randrange(len(shape)))
        elif change == 2 and shape:
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 5, 2**31 - 1, 2**64, -3))
        else:
            rng.shuffle(shape)


def _datatype(request: Request, rng: random.Random) -> None:
    if entry := _entry(request, rng):
        entry["datatype"] = rng.choice((*DATATYPES, "FP23", "fp32", ""))


def _length(request: Request, rng: random.Random) -> None:
    real = len(json.dumps(request.document))
    request.headers["inference-header-content-length"] = rng.choice((*LENGTHS, *(str(real + step) for step in (-1, 1, -5, 7, 10**6))))


def _cut(request: Request, rng: random.Random) -> None:
    request.cut = rng.getrandbits(16)


def _flip(request: Request, rng: random.Random) -> None:
    request.flips += tuple((rng.getrandbits(16), rng.getrandbits(8)) for _ in range(rng.randint(1, 8)))


def _tail(request: Request, rng: random.Random) -> None:
    request.tail = rng.randbytes(rng.randint(1, 64))


def _raw(request: Request, rng: random.Random) -> None:
    request.raw = rng.randbytes(len(request.raw))


def _packed(request: Request, rng: random.Random) -> None:
    request.headers["content-encoding"] = rng.choice(("gzip", "deflate", "br", "identity", "gzip, gzip", ""))


def _address(request: Request, rng: random.Random) -> None:
    request.path = rng.choice(
        ("/v2/models/other/infer", "/v2/models/tiny/versions/9/infer", "/v2/models//infer", "/v2/models/tiny/infer/x", "/v2/é")
    )


CHANGES = (_replace, _replace, _remove, _double, _size, _shape, _datatype, _length, _cut, _flip, _tail, _raw, _packed, _address)
