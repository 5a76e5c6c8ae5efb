"""Predictions for raw samples: images, text and rows, in every form, are what the bundle itself predicts."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi_case import Answered, ask, call, kept_bundle, mixed_bundle
from onnx import TensorProto, helper
from PIL import Image
from serving_case import BASELINE, INT8, OUTPUT, tiny_bundle
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from lowbit.bundle.bundle import Bundle
from lowbit.serving.protocol import aside
from lowbit.serving.web import openapi, predict, samples
from lowbit.serving.web.predict import Predict
from lowbit.serving.web.rest import Rest
from small_models import save

PATH = "/v1/models/tiny/predict"
JSON, PNG = {"content-type": "application/json"}, {"content-type": "image/png"}


def photo(seed: int = 0, size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


def png(seed: int = 0, size: tuple[int, int] = (20, 30)) -> bytes:
    file = io.BytesIO()
    photo(seed, size).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def front(service: Any) -> Rest:
    return Rest(service, Predict(service))


def one(folder: Path, path: str, body: bytes | list[bytes], headers: dict[str, str], query: str = "", **settings: Any) -> Answered:
    return ask([folder], lambda app: call(front(app.service), "POST", path, body, headers, query=query), **settings)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("predict") / "tiny")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = a + 2 b on scaled columns, trained on labels of mean 10 and standard deviation 4."""
    folder = tmp_path_factory.mktemp("predict") / "table"
    (folder / "baseline").mkdir(parents=True)
    weights = {"w": np.array([[1.0], [2.0]], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    sides = [{"x": (TensorProto.FLOAT, ["N", 2])}, {"y": (TensorProto.FLOAT, ["N", 1])}]
    model = save(folder / "baseline" / "model.onnx", nodes, *sides, weights)
    steps = "schema: 1\nkind: array\ncolumns: [a, b]\nmean: [1.0, 2.0]\nstd: [2.0, 4.0]\ndtype: float32\n"
    steps += "target: y\ntarget_mean: 10.0\ntarget_std: 4.0\n"
    return kept_bundle(folder, model, preprocess=steps)


WORDS = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes by the mean of one-hot words: logits [bad, good], named."""
    from hashlib import sha256

    folder = tmp_path_factory.mktemp("predict") / "text"
    (folder / "baseline").mkdir(parents=True)
    table = np.zeros((5, 2), np.float32)
    table[2], table[3] = (-3, 3), (3, -3)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["logits"], keepdims=0),
    ]
    sides = [{"input_ids": (TensorProto.INT64, ["N", "T"])}, {"logits": (TensorProto.FLOAT, ["N", 2])}]
    model = save(folder / "baseline" / "model.onnx", nodes, *sides, {"table": table, "axis": np.array([1])})
    tokenizer = Tokenizer(WordLevel(WORDS, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    content = tokenizer.to_str()
    (folder / "tokenizer.json").write_text(content)
    digest = sha256(content.encode()).hexdigest()
    steps = f"schema: 1\nkind: text\ntext:\n  tokenizer: tokenizer.json\n  sha256: {digest}\n  form: sentence\n"
    steps += "  max_length: 8\n  length: 4\n  labels: [negative, positive]\n"
    return kept_bundle(folder, model, preprocess=steps, task="classification")


# Images ----------------------------------------------------------------------------------------------------------------


def form(*files: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    parts = [f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    head = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = b"".join([*parts, *(head + data + b"\r\n" for data in files), b"--X--\r\n"])
    return body, {"content-type": 'multipart/form-data; boundary="X"'}


def as_json(document: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(document).encode(), JSON


def test_an_image_in_every_form_is_what_the_bundle_predicts(tiny: Path) -> None:
    with Bundle.load(tiny).session() as session:
        expected = session.predict([photo(0), photo(1)])[OUTPUT]
    likely = np.exp(expected - expected.max(1, keepdims=True))
    likely = (likely / likely.sum(1, keepdims=True)).astype(np.float64)
    pixels = np.asarray(photo(0).resize((8, 8))).tolist()

    async def work(app: Rest) -> None:
        fronted = front(app.service)
        forms: list[tuple[tuple[Any, dict[str, str]], int]] = [
            ((png(0), PNG), 1),
            ((png(0), {"content-type": "image/x-anything"}), 1),
            (form(png(0), png(1)), 2),
            (as_json(b64(png(0))), 1),
            (as_json({"image": "data:image/png;base64," + b64(png(0))}), 1),
            (as_json([{"b64": b64(png(0))}, b64(png(1))]), 2),
            (as_json({"samples": [b64(png(0)), b64(png(1))], "id": "7"}), 2),
        ]
        for (body, headers), n in forms:
            found = await call(fronted, "POST", PATH, body, headers)
            assert found.status == 200, found.body
            document = found.json
            assert document["model_name"] == "tiny"
            (output,) = document["outputs"]
            assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected[:n])
            assert [each["label"] for each in document["predictions"]] == likely[:n].argmax(1).tolist()
            assert [each["confidence"] for each in document["predictions"]] == pytest.approx(likely[:n].max(1), rel=1e-5)
        assert document["id"] == "7"
        listed = await call(fronted, "POST", PATH, json.dumps(pixels).encode(), JSON)
        assert listed.json["outputs"][0]["shape"] == [1, 10]

    ask([tiny], work)


def test_top_classes_variants_and_no_outputs(tiny: Path) -> None:
    found = one(tiny, PATH, png(), PNG, "top=3&outputs=false&variant=full").json
    assert "outputs" not in found
    assert found["parameters"]["variant"] == BASELINE
    (prediction,) = found["predictions"]
    assert prediction["top"][0]["label"] == prediction["label"]
    confidences = [each["confidence"] for each in prediction["top"]]
    assert (len(confidences), confidences) == (3, sorted(confidences, reverse=True))
    assert one(tiny, PATH, *form(png(), variant="full")).json["parameters"]["variant"] == BASELINE
    body, headers = as_json({"samples": [b64(png())], "parameters": {"variant": "full"}})
    assert one(tiny, PATH, body, headers).json["parameters"]["variant"] == BASELINE
    assert one(tiny, PATH, png(), PNG).json["parameters"]["variant"] == INT8


def test_the_address_without_a_name_is_the_only_models(tiny: Path, table: Path) -> None:
    assert one(tiny, "/v1/predict", png(), PNG).status == 200
    version = one(tiny, "/v1/predict", png(), PNG).json["model_version"]
    assert one(tiny, f"/v1/models/tiny/versions/{version}/predict", png(), PNG).status == 200
    assert one(tiny, "/v1/models/tiny/versions/7/predict", png(), PNG).status == 404
    two = ask([tiny, table], lambda app: call(front(app.service), "POST", "/v1/predict", png(), PNG))
    assert (two.status, two.error) == (404, "Say which model: /v1/models/NAME/predict. Served: tiny, table.")


def claims(side: int) -> bytes:
    """A few bytes that claim to be a huge PNG; that they are refused for their pixels shows that nobody tried to decode them."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()[:200]


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"hello", {"content-type": "text/plain"}, 415, "The body is text/plain; this model takes images"),
        (b"hello", {"content-type": "image/png"}, 400, "Image 0 is none of PNG, JPEG"),
        (png()[:300], PNG, 400, "Image 0 cannot be read"),
        (claims(9000), PNG, 400, "Image 0 has 81,000,000 pixels; 64,000,000 are allowed."),
        (claims(14_000), PNG, 400, "Image 0 has too many pixels; 64,000,000 are allowed."),
        (b"", PNG, 400, "Image 0 is none of"),
        (b"", JSON, 400, "The body is not JSON"),
        (*as_json([]), 400, "There is no sample in the body."),
        (*as_json({"samples": []}), 400, "There is no sample in the body."),
        (*as_json({"samples": 3}), 400, "'samples' must be a list"),
        (*as_json({"samples": [""], "id": 3}), 400, "'id' must be a string"),
        (*as_json("no base64!"), 400, "is not base64"),
        (*as_json("/etc/passwd"), 400, "is not base64"),
        (*as_json("etc/hostname"), 400, "Image 0 is none of"),
        (*as_json({"a": 1, "b": 2}), 400, "An image in JSON is base64"),
        (*as_json([[1, 2], [3]]), 400, "not an array of numbers"),
        (*as_json(5), 400, "An image in JSON is base64"),
        (*as_json([b64(png())] * 1025), 413, "The body has 1,025 samples; 1,024 are allowed."),
        (b"--Y--", {"content-type": "multipart/form-data"}, 400, "has no boundary"),
        (b"nothing", {"content-type": "multipart/form-data; boundary=Y"}, 400, "does not end with its boundary"),
        (b"--Y\r\nabc\r\n--Y--", {"content-type": "multipart/form-data; boundary=Y"}, 400, "no end of its headers"),
        (form(variant="full")[0], form()[1], 400, "There is no sample in the body."),
    ],
)
def test_what_is_wrong_with_an_image_is_named(tiny: Path, body: bytes, headers: dict[str, str], status: int, words: str) -> None:
    found = one(tiny, PATH, body, headers)
    assert found.status == status, found.body
    assert words in found.error


def test_a_form_of_many_parts_is_refused_before_they_are_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "HeaderParser", None)
    body = b"--Y\r\n\r\n" + b"\r\n--Y" * 200_000 + b"--"
    found = one(tiny, PATH, body, {"content-type": "multipart/form-data; boundary=Y"})
    assert (found.status, found.error[:28]) == (413, "The form has 200,000 parts; ")


def test_images_are_decoded_one_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind each only the model's own few pixels are kept."""
    alive: list[weakref.ref[Any]] = []
    most, decode = 0, samples._decoded

    def watched(*given: Any) -> Any:
        nonlocal most
        image, pixels = decode(*given)
        alive.append(weakref.ref(image))
        most = max(most, sum(each() is not None for each in alive))
        return image, pixels

    monkeypatch.setattr(samples, "_decoded", watched)
    found = one(tiny, PATH, *form(*(png(n) for n in range(8))))
    assert found.json["outputs"][0]["shape"] == [8, 10]
    assert (len(alive), most) == (8, 2)  # the one before is let go once the next is there


def test_what_was_loaded_answers_whatever_the_folder_holds_by_then(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "tiny")

    async def work(app: Rest) -> None:
        fronted = front(app.service)
        (folder / "preprocess.yaml").write_text("nonsense: [")
        assert (await call(fronted, "POST", PATH, png(), PNG)).status == 200
        (each,) = openapi.document(app.service.models.values(), keys=False)["info"]["x-models"]
        assert each["x-takes"] == "image"

    ask([folder], work)


def test_large_answers_are_written_in_a_thread(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    told = predict.told

    def watched(*given: Any) -> Any:
        names.append(threading.current_thread().name.rpartition("_")[0])
        return told(*given)

    monkeypatch.setattr(predict, "told", watched)
    assert one(tiny, PATH, png(), PNG).status == 200
    monkeypatch.setattr(aside, "SMALL", 30)
    assert one(tiny, PATH, png(), PNG).status == 200
    assert names == ["", "lowbit-prepare"]


def test_pixels_of_a_request_have_a_limit_together(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_PIXELS_TOGETHER", 1500)
    assert one(tiny, PATH, *form(png(0), png(1))).status == 200
    found = one(tiny, PATH, *form(png(0), png(1), png(2)))
    assert (found.status, found.error) == (400, "The images have more than 1,500 pixels together.")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("varient=full", "The query has 'varient', which is not known"),
        ("top=0", "top must be"),
        ("top=x", "top must be"),
        ("top=1001", "top must be"),
        ("top=10000", "top must be"),
        ("top=010009", "top must be"),
        pytest.param("top=01000" + "9" * 5000, "top must be", id="many digits"),
        ("outputs=no", "outputs must be"),
    ],
)
def test_a_query_that_is_not_understood(tiny: Path, query: str, words: str) -> None:
    found = one(tiny, PATH, png(), PNG, query)
    assert found.status == 400
    assert words in found.error


# Rows and text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "values"),
    [
        ({"a": 3.0, "b": 6.0}, [22.0]),
        ({"b": 6, "a": 3}, [22.0]),
        ([3, 6], [22.0]),
        ([[3, 6], [1, 2]], [22.0, 10.0]),
        ([{"a": 3, "b": 6}, {"a": 1, "b": 2}], [22.0, 10.0]),
        ({"samples": [[3, 6], {"a": 1, "b": 2}]}, [22.0, 10.0]),
    ],
)
def test_rows_are_scaled_there_and_back(table: Path, document: Any, values: list[float]) -> None:
    """(3-1)/2 + 2 (6-2)/4 = 3, times 4, plus 10."""
    found = one(table, "/v1/predict", *as_json(document))
    assert [each["value"] for each in found.json["predictions"]] == pytest.approx(values)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"a": 1}, "The row lacks b. It has a."),
        ({"a": 1, "b": "two"}, "not an array of numbers"),
        ({"a": 1, "b": None}, "not an array of numbers"),
        ([1, 2, 3], "do not fit the model's preprocessing"),
        ("row", ""),
        ([[1, 2], [3]], ""),
    ],
)
def test_rows_that_are_wrong(table: Path, document: Any, words: str) -> None:
    found = one(table, "/v1/predict", *as_json(document))
    assert found.status == 400, found.body
    assert words in found.error


def test_text_in_every_form(text: Path) -> None:
    async def work(app: Rest) -> None:
        fronted = front(app.service)
        plain = {"content-type": "text/plain; charset=utf-8"}
        for body, headers, names in (
            (b"good film", plain, ["positive"]),
            (*as_json("bad film"), ["negative"]),
            (*as_json(["bad", "good"]), ["negative", "positive"]),
            (*as_json({"samples": ["good good"]}), ["positive"]),
            (*as_json({"sentence": "bad film"}), ["negative"]),
        ):
            found = await call(fronted, "POST", "/v1/predict", body, headers, query="top=2")
            assert [each["name"] for each in found.json["predictions"]] == names, found.body
        assert found.json["predictions"][0]["confidence"] == pytest.approx(1 / (1 + np.exp(-1.5)), rel=1e-5)  # -3 / 4 words against 3 / 4
        for body, headers, status, words in (
            (b"\xff", plain, 400, "The text is not utf-8."),
            (
                b"hi",
                {"content-type": "text/plain; charset=klingon"},
                400,
                "The text is 'klingon'. Allowed: utf-8, us-ascii, utf-16, iso-8859-1.",
            ),
            (b"hi-", {"content-type": "text/plain; charset=punycode"}, 400, "The text is 'punycode'."),
            (b"hi", {"content-type": "text/plain; charset=idna"}, 400, "The text is 'idna'."),
            (png(), PNG, 415, "this model takes text"),
            (*as_json([1, 2]), 400, "this model takes a text"),
            (*as_json({"a": "x", "b": "y"}), 400, "this model takes a text"),
        ):
            found = await call(fronted, "POST", "/v1/predict", body, headers)
            assert (found.status, words in found.error) == (status, True), found.body

    ask([text], work)


def test_several_inputs_are_given_by_name(tmp_path: Path) -> None:
    folder = mixed_bundle(tmp_path / "mixed")
    sample = {"count": [1, 2, 3, 4], "half": [0.5, 1, 1.5, 2], "flag": [True, False, True, False]}
    found = one(folder, "/v1/predict", *as_json({"samples": [sample]}))
    assert {each["name"]: each["data"] for each in found.json["outputs"]}["twice"] == [1, 2, 3, 4]
    lacking = one(folder, "/v1/predict", *as_json({"samples": [{"count": [1, 2, 3, 4]}]}))
    assert (lacking.status, lacking.error) == (400, "A sample is an object with all of the model's inputs: count, half, flag.")


# Around it -------------------------------------------------------------------------------------------------------------


def test_keys_methods_and_deadlines(tiny: Path) -> None:
    assert one(tiny, PATH, png(), PNG, api_keys=("k",)).status == 401
    assert one(tiny, PATH, png(), {**PNG, "x-api-key": "k"}, api_keys=("k",)).status == 200
    wrong = ask([tiny], lambda app: call(front(app.service), "GET", PATH))
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    late = one(tiny, PATH, png(), {**PNG, "x-request-timeout-ms": "0.001"})
    assert late.status == 504


def test_decoding_keeps_nobody_waiting(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sample is prepared in a thread, the event loop goes on, and the server waits for it before it ends."""
    prepare = predict.prepare
    started, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        started.set()
        assert go_on.wait(30), "the event loop was kept waiting"
        return prepare(*arguments)

    monkeypatch.setattr(predict, "prepare", slow)

    async def work(app: Rest) -> None:
        asking = asyncio.create_task(call(front(app.service), "POST", PATH, png(), PNG))
        assert await asyncio.to_thread(started.wait, 30)
        assert (await call(app, "GET", "/v2/health/live")).status == 200
        app.service.draining = True
        assert not asking.done()
        drained = asyncio.create_task(app.service.model("tiny").drained())
        await asyncio.sleep(0)
        assert not drained.done()
        go_on.set()
        await drained
        assert (await asking).status == 200

    ask([tiny], work)
