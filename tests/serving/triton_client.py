"""Asks a server with tritonclient and prints what it got as JSON. Runs in an environment of its own (`make clients`).

python triton_client.py http|grpc ADDRESS [KEY] [CA_FILE]
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException


def images(n: int) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (n, 3, 8, 8)).astype(np.float32)


def error(work: Callable[[], Any]) -> list[str | None]:
    """Status and message of the exception that must come."""
    try:
        work()
    except InferenceServerException as refused:
        return [refused.status(), refused.message()]
    return ["none", "no exception"]


class Asks:
    """One client, and what it is to ask for."""

    def __init__(self, way: str, address: str, key: str | None, authority: str | None) -> None:
        self.way = way
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.more: dict[str, Any] = {"headers": headers} if headers else {}
        if way == "http":
            import tritonclient.http as triton

            context = {} if authority is None else {"ssl": True, "ssl_options": {"ca_certs": authority}}
            self.client = triton.InferenceServerClient(address, **context)
        else:
            import tritonclient.grpc as triton

            secure = {} if authority is None else {"ssl": True, "root_certificates": authority}
            self.client = triton.InferenceServerClient(address, **secure)
        self.triton = triton

    def tensor(self, name: str, array: Any, datatype: str, **form: Any) -> Any:
        made = self.triton.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, **(form if self.way == "http" else {}))
        return made

    def infer(self, model: str, inputs: Any, **more: Any) -> Any:
        return self.client.infer(model, inputs, **more, **self.more)

    def facts(self) -> dict[str, Any]:
        plain = {} if self.way == "http" else {"as_json": True}
        client = self.client
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready("tiny", **self.more),
            "other_ready": client.is_model_ready("other", **self.more),
            "server": client.get_server_metadata(**plain, **self.more),
            "model": client.get_model_metadata("tiny", **plain, **self.more),
        }

    def numbers(self) -> dict[str, Any]:
        x = self.tensor("input.1", images(3), "FP32")
        found = self.infer("tiny", [x], request_id="q1")
        said = found.get_response() if self.way == "http" else found.get_response(as_json=True)
        full = self.infer("tiny", [x], parameters={"variant": "full"})
        top = self.infer("tiny", [x], outputs=[self.triton.InferRequestedOutput("logits", class_count=2)])
        named = {name: value if self.way == "http" else value["string_param"] for name, value in said["parameters"].items()}
        result = {
            "logits": found.as_numpy("logits").tolist(),
            "id": said["id"],
            "variant": named["variant"],
            "full": full.as_numpy("logits").tolist(),
            "top": [[value.decode() for value in row] for row in top.as_numpy("logits").tolist()],
        }
        if self.way == "http":
            plain = [self.triton.InferRequestedOutput("logits", binary_data=False)]
            text = self.infer("tiny", [self.tensor("input.1", images(3), "FP32", binary_data=False)], outputs=plain)
            result["json"] = text.as_numpy("logits").tolist()
            packed = self.infer("tiny", [x], request_compression_algorithm="gzip")
        else:
            packed = self.infer("tiny", [x], compression_algorithm="gzip")
        return {**result, "packed": packed.as_numpy("logits").tolist()}

    def types(self) -> dict[str, Any]:
        """Several inputs of several types, and some outputs of them; strings."""
        count = np.array([[1, -2, 3, 2**62]], np.int64)
        half = np.array([[0.5, 1, 2, -4]], np.float16)
        flag = np.array([[True, False, True, False]])
        inputs = [self.tensor("count", count, "INT64"), self.tensor("half", half, "FP16"), self.tensor("flag", flag, "BOOL")]
        found = self.infer("mixed", inputs)
        outputs = {name: found.as_numpy(name) for name in ("next", "twice", "not")}
        some = self.infer("mixed", inputs, outputs=[self.triton.InferRequestedOutput("twice")])
        words = self.infer("echo", [self.tensor("words", np.array([["schön".encode(), b""]], object), "BYTES")])
        return {
            "values": {name: array.tolist() for name, array in outputs.items()},
            "dtypes": {name: array.dtype.name for name, array in outputs.items()},
            "some": [some.as_numpy("twice").tolist(), some.as_numpy("next") is None],
            "words": [value.decode() for value in words.as_numpy("same").ravel()],
        }

    def errors(self) -> dict[str, Any]:
        x, small = self.tensor("input.1", images(1), "FP32"), self.tensor("input.1", images(1)[..., :4].copy(), "FP32")
        none = self.triton.InferRequestedOutput("none")
        return {
            "model": error(lambda: self.infer("other", [x])),
            "version": error(lambda: self.infer("tiny", [x], model_version="7")),
            "shape": error(lambda: self.infer("tiny", [small])),
            "name": error(lambda: self.infer("tiny", [self.tensor("image", images(1), "FP32")])),
            "datatype": error(lambda: self.infer("tiny", [self.tensor("input.1", images(1).astype(np.float64), "FP64")])),
            "output": error(lambda: self.infer("tiny", [x], outputs=[none])),
            "deadline": error(lambda: self.infer("tiny", [x], timeout=1)),
            "metadata": error(lambda: self.client.get_model_metadata("other", **self.more)),
            "after": self.infer("tiny", [x]).as_numpy("logits").shape[0],
        }

    def together(self) -> list[Any]:
        """Many at once, each with an answer of its own."""
        rows = images(40)
        if self.way == "http":
            waiting = [self.client.async_infer("tiny", [self.tensor("input.1", rows[n : n + 1], "FP32")], **self.more) for n in range(40)]
            return [each.get_result().as_numpy("logits").tolist() for each in waiting]
        answers: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: answers.put((result, error)), **self.more)
        for n in range(40):
            self.client.async_stream_infer("tiny", [self.tensor("input.1", rows[n : n + 1], "FP32")], request_id=str(n))
        self.client.async_stream_infer("other", [self.tensor("input.1", rows[:1], "FP32")], request_id="refused")
        found = [answers.get(timeout=20) for _ in range(41)]
        self.client.stop_stream()
        assert [result.get_response().id for result, _ in found[:40]] == [str(n) for n in range(40)]
        assert "There is no model 'other'" in str(found[40][1])
        return [result.as_numpy("logits").tolist() for result, _ in found[:40]]


def main(way: str, address: str, key: str | None = None, authority: str | None = None) -> None:
    asks = Asks(way, address, key or None, authority)
    if key is not None or authority is not None:
        stranger = Asks(way, address, None, authority)
        x = asks.tensor("input.1", images(1), "FP32")
        allowed = asks.infer("tiny", [x]).as_numpy("logits").shape[0]
        print(
            json.dumps(
                {"refused": error(lambda: stranger.infer("tiny", [x])), "allowed": allowed, "live": stranger.client.is_server_live()}
            )
        )
        return
    print(json.dumps({name: getattr(asks, name)() for name in ("facts", "numbers", "types", "errors", "together")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
