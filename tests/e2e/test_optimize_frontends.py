"""From a PyTorch module and from a Hugging Face folder to a bundle, with real weights and text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_runner import lowbit

from lowbit import Bundle, optimize
from lowbit.pipeline import finish, lengths, screen, tune

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import small_torch as nets  # noqa: E402  (needs torch)

FEW = {"recipes": ("int8-static-mse",), "runtimes": ("onnxruntime",), "rounds": 3}


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    """Real races, but short ones."""
    short = {"rounds": 3, "seconds_per_round": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((screen, "QUICK"), (tune, "QUICK"), (finish, "FINAL"), (lengths, "FINAL")):
            patch.setattr(module, name, short)
        yield


def test_resnet20_from_its_module(shared_data: Path, tmp_path: Path) -> None:
    """The checkpoint's own keys, the accuracy that it is known for, and INT8 that keeps it."""
    net = nets.ResNet20()
    result = optimize(
        net,
        shared_data / "cifar10" / "cifar10_test10k.npz",
        weights=shared_data / "cifar10-resnet" / "resnet20.th",
        preprocess="imagenet",
        limit=1000,
        max_drop="5pp",
        batch=(1,),
        out=tmp_path / "bundle",
        **FEW,
    )
    manifest = result.bundle.manifest
    assert manifest.source.exported_from is not None
    assert (manifest.source.exported_from.format, manifest.source.exported_from.name) == ("pytorch", "ResNet20")
    parity = manifest.source.exported_from.parity
    assert parity is not None
    assert parity.n == 64
    assert parity.max_rel < 1e-4
    assert parity.agreement == 1.0
    assert manifest.baseline.metric is not None
    assert manifest.baseline.metric.value == pytest.approx(0.81, abs=0.03)
    small = next(entry for entry in manifest.candidates if entry.precision == "int8")
    assert small.metric is not None
    assert small.metric.value == pytest.approx(manifest.baseline.metric.value, abs=0.02)
    assert net.training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text classifier, and sentences that carry its own answers as labels."""
    pytest.importorskip("transformers")
    import tiny_encoders as tiny
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("text")
    names = {0: "dull", 1: "lively"}
    source = tiny.save_encoder(folder / "judge", "BertForSequenceClassification", id2label=names)
    texts = [" ".join(words) for words in tiny.sentences(80, longest=20)]
    tokens = AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(source).eval()(**tokens).logits
    # The halves of its answers are the classes: a random model may call everything the same.
    lively = (logits[:, 1] - logits[:, 0]).numpy()
    wanted = lively > np.median(lively)
    shift = float(np.median(lively))
    weights = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        weights.classifier.bias[0] += shift
    weights.save_pretrained(source)
    (folder / "dev.tsv").write_text("".join(f"{text}\t{names[int(yes)]}\n" for text, yes in zip(texts, wanted, strict=True)))
    return folder


def test_a_folder_and_a_table_are_all_that_is_needed(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    narrow = ["--recipe", "int8-dynamic", "--runtime", "onnxruntime", "--rounds", 3, "--batch", "1,4", "--max-drop", "30pp"]
    shell = lowbit(capfd, monkeypatch, "optimize", folder / "judge", "--data", folder / "dev.tsv", "--out", out, *narrow)
    assert shell.code == 0, shell.err
    bundle = Bundle.load(out)
    assert bundle.manifest.policy.metric == "top1"
    assert bundle.manifest.baseline.metric is not None
    assert bundle.manifest.baseline.metric.value == 1.0
    assert bundle.manifest.source.exported_from is not None
    assert bundle.manifest.source.exported_from.format == "huggingface"
    shutil.rmtree(folder / "judge")  # the bundle needs nothing of it
    texts, names = zip(*(line.split("\t") for line in (folder / "dev.tsv").read_text().splitlines()), strict=True)
    answers = bundle.session(candidate="fp32@onnxruntime").predict(list(texts))["logits"].argmax(1)
    assert [("dull", "lively")[answer] for answer in answers] == list(names)
    assert bundle.session().predict("a quiet film")["logits"].shape == (1, 2)
    assert bundle.session().predict({"text": "a quiet film", "id": 7})["logits"].shape == (1, 2)


def test_every_sequence_length_is_timed_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import tiny_encoders as tiny

    source = tiny.save_encoder(tmp_path / "encoder", "BertModel")
    data = tmp_path / "texts.tsv"
    data.write_text("".join(f"{' '.join(words)}\n" for words in tiny.sentences(60, 4, 24)))
    options = {"out": tmp_path / "bundle", "batch": (1,), "max_drop": "90%", **FEW, "recipes": ("int8-dynamic",)}
    manifest = optimize(source, data, **options).bundle.manifest
    assert (manifest.policy.task, manifest.policy.metric) == ("fidelity", "cosine")
    chosen = manifest.chosen
    assert [(entry.tokens, entry.batch) for entry in chosen.by_length] == [(16, 1), (32, 1)]
    assert all(entry.speedup is not None and entry.latency_ms.p50 > 0 for entry in chosen.by_length)
    assert any(note.startswith("At 16 tokens it is") for note in manifest.notes)
    before = (tmp_path / "bundle" / "journal.jsonl").read_text()
    optimize(source, data, **options)  # the export is the same file, so the journal is this very search's
    after = (tmp_path / "bundle" / "journal.jsonl").read_text()
    assert after == before
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["source"]["exported_from"]["name"] == "encoder"
