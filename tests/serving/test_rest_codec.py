"""Bodies to requests and answers to bodies: every datatype, in JSON and in binary, and a clear word for all that is wrong."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.serving.protocol import rest_codec, wire
from lowbit.serving.protocol.refusals import Malformed, TooLarge
from lowbit.serving.protocol.requests import InferRequest, InferResponse, Wanted
from lowbit.types import Array

DTYPES = {
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


def tensors(finite: bool) -> st.SearchStrategy[Array]:
    """Arrays of every dtype that numpy has."""
    return st.sampled_from(sorted(DTYPES.values())).flatmap(
        lambda name: hnp.arrays(
            name, SHAPES, elements={"allow_nan": not finite, "allow_infinity": not finite} if name.startswith("float") else None
        )
    )


def texts() -> st.SearchStrategy[Array]:
    """Arrays of strings, which the wire calls BYTES."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    return SHAPES.flatmap(lambda shape: hnp.arrays(object, shape, elements=text, fill=st.nothing()))


def binary_body(inputs: dict[str, Array], **document: Any) -> tuple[bytes, str]:
    """A request in binary form, written here by the protocol's text alone."""
    entries, raw = [], []
    for name, array in inputs.items():
        if array.dtype == object:
            encoded = [value.encode() for value in array.ravel()]
            raw.append(b"".join(len(value).to_bytes(4, "little") + value for value in encoded))
        else:
            raw.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
        datatype = wire.datatype_of(array.dtype.name)
        size = {"binary_data_size": len(raw[-1])}
        entries.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": size})
    head = json.dumps({"inputs": entries, **document}).encode()
    return b"".join([head, *raw]), str(len(head))


def same(left: Array, right: Array) -> bool:
    if left.dtype == object:
        return left.shape == right.shape and left.tolist() == right.tolist()
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_every_datatype_of_the_protocol_is_known() -> None:
    assert set(wire.DATATYPES) == {*DTYPES, "BF16", "BYTES"}
    assert {name: wire.numpy_dtype(name).name for name in DTYPES} == DTYPES


@given(st.lists(tensors(finite=False) | texts(), min_size=1, max_size=3))
def test_binary_requests_come_back_bit_for_bit(arrays: list[Array]) -> None:
    inputs = {f"x{position}": array for position, array in enumerate(arrays)}
    body, header = binary_body(inputs, id="7", parameters={"variant": "full", "binary_data_output": True})
    found = rest_codec.parse(body, header)
    assert (found.id, found.binary, dict(found.parameters)) == ("7", True, {"variant": "full", "binary_data_output": True})
    assert list(found.inputs) == list(inputs)
    assert all(same(found.inputs[name], array) for name, array in inputs.items())


@given(tensors(finite=True) | texts(), st.booleans())
def test_json_requests_come_back_value_for_value(array: Array, nested: bool) -> None:
    data = array.tolist() if nested and array.size else array.ravel().tolist()
    entry = {"name": "x", "datatype": wire.datatype_of(array.dtype.name), "shape": list(array.shape), "data": data}
    found = rest_codec.parse(json.dumps({"inputs": [entry]}).encode(), None)
    if array.dtype.kind == "f":
        assert found.inputs["x"].dtype == array.dtype
        assert np.array_equal(found.inputs["x"], array)
    else:
        assert same(found.inputs["x"], array)


@given(st.lists(tensors(finite=False) | texts(), min_size=1, max_size=3), st.booleans())
def test_answers_can_be_read_by_the_protocols_text(arrays: list[Array], binary: bool) -> None:
    outputs = {f"y{position}": array for position, array in enumerate(arrays)}
    parts, length = rest_codec.render(InferResponse("m", "1", outputs, "id"), InferRequest({}, binary=binary))
    body = b"".join(parts)
    document = json.loads(body[:length], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "id")
    assert (length is not None) == binary
    at = length or 0
    for entry, (name, array) in zip(document["outputs"], outputs.items(), strict=True):
        assert (entry["name"], entry["datatype"], entry["shape"]) == (name, wire.datatype_of(array.dtype.name), list(array.shape))
        if binary:
            size = entry["parameters"]["binary_data_size"]
            back = wire.from_bytes(name, entry["datatype"], entry["shape"], body[at : at + size])
            at += size
            assert same(back, array)
        elif array.dtype.kind == "f":
            back = np.array([np.nan if value is None else value for value in entry["data"]], array.dtype)
            finite = np.isfinite(array.ravel())
            assert np.array_equal(back[finite], array.ravel()[finite])
            assert [value is None for value in entry["data"]] == (~finite).tolist()
        else:
            assert same(wire.from_json(name, entry["datatype"], entry["shape"], entry["data"]), array)
    assert not binary or at == len(body)


def test_bfloat16_travels_as_bytes_alone() -> None:
    array = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    entry = {"name": "x", "datatype": "BF16", "shape": [1, 2], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [entry]}).encode()
    assert same(rest_codec.parse(head + array.tobytes(), str(len(head))).inputs["x"], array)
    with pytest.raises(Malformed, match="'x' is BF16, which has no form in JSON"):
        rest_codec.parse(json.dumps({"inputs": [{**entry, "parameters": {}, "data": [1.5, -2.0]}]}).encode(), None)
    parts, length = rest_codec.render(InferResponse("m", "1", {"y": array}), InferRequest({}))
    assert length is None
    assert json.loads(parts[0])["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]


def test_each_output_may_be_asked_for_in_its_own_form() -> None:
    document = {
        "outputs": [
            {"name": "a", "parameters": {"binary_data": True}},
            {"name": "b", "parameters": {"binary_data": False}},
            {"name": "c", "parameters": {"classification": 3}},
        ]
    }
    body, header = binary_body({"x": np.zeros((1, 1), np.float32)}, **document)
    request = rest_codec.parse(body, header)
    assert request.outputs == (Wanted("a", True), Wanted("b", False), Wanted("c", None, 3))
    outputs = {name: np.ones((1, 1), np.float32) for name in "ab"}
    parts, _ = rest_codec.render(InferResponse("m", "1", outputs), request)
    first, second = json.loads(parts[0])["outputs"]
    assert (first["parameters"], second["data"], parts[1]) == ({"binary_data_size": 4}, [1.0], np.float32(1).tobytes())


GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
BINARY = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
RAW = bytes(8)


def refusal(document: Any, raw: bytes | None = None, header: str | None = None) -> str:
    """What is said of a request: of JSON alone, or of JSON with raw bytes behind it."""
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(Malformed) as caught:
        rest_codec.parse(head + (raw or b""), header if header is not None or raw is None else str(len(head)))
    return caught.value.message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "The body is not JSON"),
        (b"\xff\xfe", "The body is not JSON"),
        (b"{'inputs': []}", "The body is not JSON"),
        (b"[" * 100_000, "The body is not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"inputs": [NaN]}', "holds NaN, which JSON has not"),
        ({}, "'inputs' must be a list"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": [1]}, "'inputs' must be a list of objects"),
        ({"inputs": [{**GOOD, "name": ""}]}, "lacks 'name'"),
        ({"inputs": [{**GOOD, "name": 3}]}, "lacks 'name'"),
        ({"inputs": [{**GOOD, "datatype": None}]}, "lacks 'datatype'"),
        ({"inputs": [{**GOOD, "datatype": "FP23"}]}, "Datatype 'FP23' is not known. Allowed: BOOL, UINT8"),
        ({"inputs": [{**GOOD, "shape": None}]}, "'x' needs a shape"),
        ({"inputs": [{**GOOD, "shape": [1, -1]}]}, "whole numbers from 0"),
        ({"inputs": [{**GOOD, "shape": [1, 2.0]}]}, "whole numbers from 0"),
        ({"inputs": [{**GOOD, "shape": [True, 2]}]}, "whole numbers from 0"),
        ({"inputs": [{**GOOD, "shape": [1] * 17}]}, "at most 16"),
        ({"inputs": [{**GOOD, "shape": [0] + [2**31 - 1] * 5, "data": []}]}, "which is too large"),
        ({"inputs": [{**GOOD, "shape": [3]}]}, "has 2 values; shape [3] has 3"),
        ({"inputs": [{**GOOD, "data": 5}]}, "must be a list"),
        ({"inputs": [{**GOOD, "data": [[1], [2, 3]]}]}, "different lengths"),
        ({"inputs": [{**GOOD, "data": [[1], 2]}]}, "mixes lists and values"),
        ({"inputs": [{**GOOD, "data": [1, [2]]}]}, "values must be numbers"),
        ({"inputs": [{**GOOD, "data": [1, None]}]}, "values must be numbers"),
        ({"inputs": [{**GOOD, "data": [1, True]}]}, "values must be numbers"),
        ({"inputs": [{**GOOD, "data": [1, 1e39]}]}, "outside the range of FP32"),
        (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[1e999]}]}', "outside the range of FP64"),
        ({"inputs": [{**GOOD, "datatype": "INT8", "data": [1, 128]}]}, "outside the range of INT8"),
        ({"inputs": [{**GOOD, "datatype": "UINT64", "data": [1, -1]}]}, "outside the range of UINT64"),
        ({"inputs": [{**GOOD, "datatype": "INT64", "data": [1, 2.0]}]}, "values must be whole numbers"),
        ({"inputs": [{**GOOD, "datatype": "BOOL", "data": [0, 1]}]}, "values must be true or false"),
        ({"inputs": [{**GOOD, "datatype": "BYTES", "data": ["a", 1]}]}, "values must be strings"),
        ({"inputs": [{**GOOD, "datatype": "BYTES", "data": ["a", "\ud800"]}]}, "not UTF-8"),
        ({"inputs": [GOOD, GOOD]}, "'x' is given twice"),
        ({"inputs": [{key: GOOD[key] for key in ("name", "datatype", "shape")}]}, "neither data nor the parameter"),
        ({"inputs": [GOOD], "id": 7}, "'id' must be a string"),
        ({"inputs": [GOOD], "parameters": []}, "Parameters must be an object"),
        ({"inputs": [GOOD], "parameters": {"a": None}}, "Parameters must be an object of strings"),
        ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"inputs": [GOOD], "outputs": [{}]}, "lacks 'name'"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}, "number of classes"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": True}}]}, "number of classes"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "binary_data must be true"),
        ({"inputs": [{**GOOD, "parameters": {"shared_memory_region": "r"}}]}, "in shared memory, which is not served"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "wanted in shared memory"),
    ],
)
def test_what_is_wrong_in_json_is_named(document: Any, words: str) -> None:
    assert words in refusal(document)


@pytest.mark.parametrize(
    ("document", "raw", "header", "words"),
    [
        ({"inputs": [BINARY]}, RAW, "", "must be a number of bytes"),
        ({"inputs": [BINARY]}, RAW, "-1", "must be a number of bytes"),
        ({"inputs": [BINARY]}, RAW, "1e2", "must be a number of bytes"),
        ({"inputs": [BINARY]}, RAW, "²", "must be a number of bytes"),
        ({"inputs": [BINARY]}, RAW, "9" * 18, "says 999999999999999999 bytes; the body has"),
        ({"inputs": [BINARY]}, RAW, "10", "The body is not JSON"),
        ({"inputs": [BINARY]}, None, None, "the header Inference-Header-Content-Length is missing"),
        ({"inputs": [BINARY]}, RAW[:7], None, "binary_data_size is 8; 7 bytes are left"),
        ({"inputs": [BINARY]}, RAW + b"1", None, "1 bytes follow the last tensor"),
        ({"inputs": [GOOD]}, RAW, None, "8 bytes follow the last tensor"),
        ({"inputs": [{**BINARY, "shape": [1, 3]}]}, RAW, None, "has 8 bytes; FP32 of shape [1, 3] has 12"),
        ({"inputs": [{**BINARY, "datatype": "FP64"}]}, RAW, None, "FP64 of shape [1, 2] has 16"),
        ({"inputs": [{**BINARY, "data": [1, 2]}]}, RAW, None, "both data and the parameter"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": "8"}}]}, RAW, None, "binary_data_size is '8'"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": -8}}]}, RAW, None, "binary_data_size is -8"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": True}}]}, RAW, None, "binary_data_size is True"),
        ({"inputs": [{**BINARY, "parameters": {"binary_data_size": 8.0}}]}, RAW, None, "binary_data_size is 8.0"),
        ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, b"\x01\0\0\0a\x09\0\0", None, "ends within the length of element 1"),
        ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, b"\x01\0\0\0a\x09\0\0\0b"[:8], None, "ends within the length"),
        ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, b"\xff\xff\xff\xffabcd", None, "said to have 4294967295 bytes; 4 are left"),
        ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, b"\x04\0\0\0abcd", None, "has 1 elements; shape [1, 2] has 2"),
        ({"inputs": [{**BINARY, "datatype": "BYTES", "shape": [1]}]}, RAW, None, "has more elements; shape [1] has 1"),
        ({"inputs": [{**BINARY, "datatype": "BYTES", "shape": [1]}]}, b"\x04\0\0\0\xff\xff\xff\xff", None, "not UTF-8"),
        ({"inputs": [{**BINARY, "datatype": "BYTES", "shape": [2**21]}]}, RAW, None, "BYTES may have 1,048,576"),
        ({"inputs": [{**BINARY, "datatype": "BOOL", "shape": [8]}]}, bytes([0, 1, 2, 0, 0, 0, 0, 0]), None, "bytes other than 0 and 1"),
    ],
)
def test_what_is_wrong_in_binary_is_named(document: Any, raw: bytes | None, header: str | None, words: str) -> None:
    assert words in refusal(document, raw, header)


def test_json_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_codec, "MOST_JSON", 200)
    large = np.zeros((1, 1000), np.float32)
    body, header = binary_body({"x": large})
    assert rest_codec.parse(body, header).inputs["x"].shape == (1, 1000)
    with pytest.raises(TooLarge, match="Send large tensors as binary"):
        rest_codec.parse(json.dumps({"inputs": [{**GOOD, "data": [0] * 100}]}).encode(), None)


def test_lists_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small to send, large to hold: empty ones."""
    monkeypatch.setattr(rest_codec, "MOST_LISTS", 100)
    document = {**GOOD, "shape": [99, 1], "data": [[0]] * 99}
    with pytest.raises(TooLarge, match="more than 100 lists and objects"):
        rest_codec.parse(json.dumps({"inputs": [document]}).encode(), None)
    with pytest.raises(TooLarge):
        rest_codec.read_json(memoryview(b"[" + b"{}," * 200 + b"0]"))
    fits = {**GOOD, "shape": [95, 1], "data": [[0]] * 95}
    assert rest_codec.parse(json.dumps({"inputs": [fits]}).encode(), None).inputs["x"].shape == (95, 1)


def test_a_binary_tensor_is_not_copied() -> None:
    body, header = binary_body({"x": np.arange(1000, dtype=np.float32)})
    found = rest_codec.parse(body, header).inputs["x"]
    assert not found.flags.owndata
    assert not found.flags.writeable
