"""Sequences share batches only where that changes no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lowbit.serving.run.batcher import Batcher, Batching
from lowbit.serving.run.ragged import BUCKETS, Ragged, ragged_for
from lowbit.types import Array, Feeds, TensorInfo
from small_models import save

INPUTS = tuple(TensorInfo(name, ("N", "T"), "int64") for name in ("input_ids", "attention_mask"))


class Encoder:
    """Embeds tokens and gives each token's vector (states) and their mean (pooled); the mask counts only where it is asked to."""

    def __init__(self, path: Path, masked: bool = True) -> None:
        rng = np.random.default_rng(0)
        weights = {"table": rng.normal(size=(50, 8)).astype(np.float32), "axis": np.array([1]), "last": np.array([2])}
        nodes = [
            helper.make_node("Gather", ["table", "input_ids"], ["states"]),
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "last"], ["m3"]),
            helper.make_node("Mul", ["states", "m3"], ["kept"]),
            helper.make_node("ReduceSum", ["kept" if masked else "states", "axis"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["m", "axis"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], ["pooled"]),
        ]
        inputs = {info.name: (TensorProto.INT64, ["N", "T"]) for info in INPUTS}
        save(path, nodes, inputs, {"states": (TensorProto.FLOAT, ["N", "T", 8]), "pooled": (TensorProto.FLOAT, ["N", 8])}, weights)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, feeds: Feeds) -> Mapping[str, Array]:
        self.shapes.append(feeds["input_ids"].shape)
        return dict(zip(("states", "pooled"), self.session.run(["states", "pooled"], feeds), strict=True))


def sentence(length: int, rows: int = 1, seed: int = 0) -> Feeds:
    ids = np.random.default_rng(seed).integers(1, 50, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_a_model_with_a_mask_is_recognized_with_its_token_axes(tmp_path: Path) -> None:
    found = ragged_for(Encoder(tmp_path / "m.onnx"), INPUTS, pad_id=3)
    assert found == Ragged({"input_ids": 3, "attention_mask": 0}, {"states": 1})


def test_a_model_into_which_padding_leaks_is_left_alone(tmp_path: Path) -> None:
    assert ragged_for(Encoder(tmp_path / "m.onnx", masked=False), INPUTS, pad_id=3) is None


@pytest.mark.parametrize(
    "inputs",
    [
        INPUTS[:1],
        (*INPUTS, TensorInfo("position_ids", ("N", "T"), "int64")),
        (TensorInfo("input_ids", ("N", 16), "int64"), INPUTS[1]),
        (TensorInfo("input_ids", ("N", "T"), "float32"), INPUTS[1]),
        (TensorInfo("input_ids", ("N", "T", 2), "int64"), INPUTS[1]),
    ],
    ids=["no mask", "unknown input", "fixed length", "floats", "three axes"],
)
def test_other_inputs_are_left_alone(inputs: tuple[TensorInfo, ...]) -> None:
    def never(feeds: Feeds) -> Mapping[str, Array]:
        raise AssertionError(f"run with {feeds}")

    assert ragged_for(never, inputs) is None


def test_a_model_that_cannot_run_the_probe_is_left_alone() -> None:
    def broken(feeds: Feeds) -> Mapping[str, Array]:
        raise ValueError(f"no {feeds}")

    assert ragged_for(broken, INPUTS) is None


def test_lengths_share_a_bucket_up_to_its_end() -> None:
    ragged = Ragged({"input_ids": 0, "attention_mask": 0}, {})
    assert [ragged.key(sentence(length)) for length in (1, 16, 17, 32, 512, 513)] == [16, 16, 32, 32, 512, 513]
    assert list(BUCKETS) == sorted(BUCKETS)
    assert ragged.key({"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 5), np.int64)}) is None


def test_answers_in_company_are_those_alone(tmp_path: Path) -> None:
    encoder = Encoder(tmp_path / "m.onnx")
    ragged = ragged_for(encoder, INPUTS)
    sentences = [sentence(length, 1 + length % 2, length) for length in (3, 9, 12, 16, 20, 30, 3)]
    alone = [encoder(each) for each in sentences]

    async def work() -> list[Mapping[str, Array]]:
        batcher = Batcher(encoder, Batching(max_batch=16, window_s=0.2), padding=ragged)
        encoder.shapes.clear()
        try:
            return [answer.outputs for answer in await asyncio.gather(*map(batcher.submit, sentences))]
        finally:
            batcher.close()

    together = asyncio.run(work())
    assert sorted(encoder.shapes) == [(2, 30), (8, 16)] or sorted(encoder.shapes) == [(2, 30), (7, 16)]
    for one, other in zip(alone, together, strict=True):
        assert {name: array.shape for name, array in one.items()} == {name: array.shape for name, array in other.items()}
        np.testing.assert_allclose(one["pooled"], other["pooled"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one["states"], other["states"])
