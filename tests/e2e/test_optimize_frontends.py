"""From a PyTorch module and from a Hugging Face folder to a bundle, with real weights and text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_runner import lowbit

from lowbit import Bundle, optimize

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import small_torch as nets  # noqa: E402  (needs torch)

pytestmark = pytest.mark.usefixtures("short_timing")

FEW = {"recipes": ("int8-static-mse",), "runtimes": ("onnxruntime",), "rounds": 3}


def test_resnet20_from_its_module(shared_data: Path, tmp_path: Path) -> None:
    """The checkpoint's own keys, the accuracy that it is known for, and INT8 that keeps it."""
    net = nets.ResNet20()
    result = optimize(
        net,
        shared_data / "cifar10" / "cifar10_test10k.npz",
        weights=shared_data / "cifar10-resnet" / "resnet20.th",
        preprocess="imagenet",
        limit=500,
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
    assert manifest.baseline.metric.value == pytest.approx(0.81, abs=0.08)
    small = next(entry for entry in manifest.candidates if entry.precision == "int8")
    assert small.metric is not None
    assert small.metric.value == pytest.approx(manifest.baseline.metric.value, abs=0.02)
    assert net.training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny text classifier, and sentences of up to 32 tokens that carry its own answers as labels."""
    pytest.importorskip("transformers")
    import tiny_encoders as tiny
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = {0: "dull", 1: "lively"}
    source = tiny.save_encoder(tmp_path / "judge", "BertForSequenceClassification", id2label=names)
    texts = [" ".join(words) for words in tiny.sentences(60, 4, 24)]
    tokens = AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
    weights = AutoModelForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        logits = weights(**tokens).logits
        # The halves of its answers are the classes: a random model may call everything the same.
        lively = logits[:, 1] - logits[:, 0]
        weights.classifier.bias[0] += lively.quantile(0.5)  # between two samples, so that none is a tie
    weights.save_pretrained(source)
    wanted = (lively > lively.quantile(0.5)).tolist()
    (tmp_path / "dev.tsv").write_text("".join(f"{text}\t{names[int(yes)]}\n" for text, yes in zip(texts, wanted, strict=True)))
    return tmp_path


def test_a_folder_and_a_table_are_all_that_is_needed(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "bundle"
    narrow = ["--recipe", "int8-dynamic", "--runtime", "onnxruntime", "--rounds", 3, "--batch", "1", "--max-drop", "30pp"]
    shell = lowbit(capfd, monkeypatch, "optimize", folder / "judge", "--data", folder / "dev.tsv", "--out", out, *narrow)
    assert shell.code == 0, shell.err
    bundle = Bundle.load(out)
    assert bundle.manifest.policy.metric == "top1"
    assert bundle.manifest.baseline.metric is not None
    assert bundle.manifest.baseline.metric.value == 1.0
    origin = bundle.manifest.source.exported_from
    assert origin is not None
    assert (origin.format, origin.name) == ("huggingface", "judge")
    check_lengths(bundle, shell.out)
    check_nothing_is_done_twice(folder)
    shutil.rmtree(folder / "judge")  # the bundle needs nothing of it
    texts, names = zip(*(line.split("\t") for line in (folder / "dev.tsv").read_text().splitlines()), strict=True)
    answers = bundle.session(candidate="fp32@onnxruntime").predict(list(texts))["logits"].argmax(1)
    assert [("dull", "lively")[answer] for answer in answers] == list(names)
    assert bundle.session().predict("a quiet film")["logits"].shape == (1, 2)
    assert bundle.session().predict({"text": "a quiet film", "id": 7})["logits"].shape == (1, 2)


def check_lengths(bundle: Bundle, printed: str) -> None:
    """Every usual sequence length up to the data's own was timed, and the reader hears of it; not where the original stays."""
    chosen = bundle.manifest.chosen
    if chosen.id == "fp32@onnxruntime":  # so small a model may be as fast as it was, by what this machine does meanwhile
        assert not chosen.by_length
        return
    assert [(entry.tokens, entry.batch) for entry in chosen.by_length] == [(16, 1), (32, 1)]
    assert all(entry.speedup is not None and entry.latency_ms.p50 > 0 for entry in chosen.by_length)
    assert any(note.startswith("At 16 to 32 tokens it is") for note in bundle.manifest.notes)
    assert "At 16 to 32 tokens it is" in printed
    assert "By sequence length" in (bundle.folder / "report.html").read_text()


def check_nothing_is_done_twice(folder: Path) -> None:
    """The export is the same file again, so the journal is this very search's."""
    journal = folder / "bundle" / "journal.jsonl"
    before = journal.read_text()
    optimize(
        folder / "judge",
        folder / "dev.tsv",
        out=folder / "bundle",
        batch=(1,),
        max_drop="30pp",
        recipes=("int8-dynamic",),
        runtimes=("onnxruntime",),
        rounds=3,
    )
    assert journal.read_text() == before
