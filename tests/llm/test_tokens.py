"""Texts into documents and windows, by the model's own tokenizer; a leak between calibrating and judging is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from decoder_case import SENTENCES, need, texts, write_tokenizer

from lowbit.errors import DataError, ModelError, UsageError
from lowbit.llm.decoder import Decoder
from lowbit.llm.tokens import RUN, TextTokens, Tokenizer, read_texts, refuse_overlap, shared_share


@dataclass
class Case:
    """A model's folder as far as its text goes."""

    path: Path
    decoder: Decoder

    def names(self) -> tuple[str, ...]:
        return ()

    def get(self, name: str) -> np.ndarray:
        raise KeyError(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Case:
    need("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    decoder = Decoder("llama", 1, 8, 1, 1, 8, 8, 320, 64, "rms", 1e-6, "silu", True, None, bos=0, eos=(1,))
    return Case(folder, decoder)


def test_special_tokens_only_where_asked_for(model: Case) -> None:
    tokenizer = Tokenizer.open(model)
    plain = tokenizer.encode(SENTENCES[0])
    assert min(plain) > 1
    assert tokenizer.encode(SENTENCES[0], bos=True) == [0, *plain]
    assert tokenizer.decode(plain) == SENTENCES[0]
    assert tokenizer.decode([*plain, 1]) == SENTENCES[0]
    assert tokenizer.decode([*plain, 1], special=True) == SENTENCES[0] + "</s>"
    assert (tokenizer.token("</s>"), tokenizer.token("<|nobody|>"), tokenizer.size) == (1, None, 320)


def test_kinds_of_texts_give_the_same_tokens(model: Case, tmp_path: Path) -> None:
    written = texts(3, 4)
    for number, text in enumerate(written):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(written)) + "\n\n")
    (tmp_path / "other.jsonl").write_text("\n".join(json.dumps({"title": "x", "story": text}) for text in written))
    given, folder = read_texts(model, written), read_texts(model, tmp_path)
    lines, other = read_texts(model, tmp_path / "lines.jsonl"), read_texts(model, tmp_path / "other.jsonl", field="story")
    assert given.sha256 == folder.sha256 == lines.sha256 == other.sha256
    assert [name for name, _ in folder.documents] == ["0.txt", "1.txt", "2.txt"]
    assert lines.documents[1][0] == "lines.jsonl:2"
    assert given.tokens == sum(len(Tokenizer.open(model).encode(text)) for text in written)
    assert read_texts(model, written, bos=True).tokens == given.tokens + 3


def test_empty_documents_are_left_out(model: Case) -> None:
    found = read_texts(model, ["", SENTENCES[0], " \n"])
    assert [name for name, _ in found.documents] == ["text 2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", "", "no text: 1 documents, all empty"),
        ("blank.jsonl", '{"text": ""}\n{"text": " "}', "no text: 2 documents, all empty"),
        ("not.txt", b"\xff\xfe\x00", "not UTF-8: byte 0"),
        ("bad.jsonl", '{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("two.jsonl", '{"a": "x", "b": "y"}', "line 1 has no text 'text'; its texts are: a, b"),
        ("number.jsonl", "3", "line 1 is neither an object nor a text"),
        ("image.png", "x", "allowed: .txt, .jsonl, and folders of .txt"),
    ],
)
def test_what_is_no_text_is_refused(model: Case, tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        read_texts(model, path)


def test_missing_text_is_refused(model: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        read_texts(model, tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"no \.txt file"):
        read_texts(model, tmp_path)
    with pytest.raises(DataError, match="The list has no text"):
        read_texts(model, [])
    with pytest.raises(DataError, match="Texts are strings; found int"):
        read_texts(model, ["a", 3])  # type: ignore[list-item]
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="no text 'story'"):
        read_texts(model, tmp_path / "a.jsonl", field="story")


def test_windows_are_spread_over_all_documents() -> None:
    found = TextTokens((("a", np.arange(100)), ("b", np.arange(1000, 1007)), ("c", np.arange(2000, 2055))))
    assert found.windows(100, 10).shape == (15, 10)  # as many as there are
    np.testing.assert_array_equal(found.windows(100, 10)[9], np.arange(90, 100))
    few = found.windows(3, 10)
    np.testing.assert_array_equal(few[:, 0], [0, 70, 2040])
    np.testing.assert_array_equal(few, found.windows(3, 10))
    assert few.dtype == np.int32
    np.testing.assert_array_equal(np.diff(found.windows(100, 10), axis=1), 1)  # none over a border


def test_texts_shorter_than_a_window_are_refused() -> None:
    found = TextTokens((("a", np.arange(9)), ("b", np.arange(4))))
    with pytest.raises(DataError, match="longest of 2 texts has 9 tokens, and a window 10"):
        found.windows(3, 10)
    with pytest.raises(UsageError, match="found 0 of 10"):
        found.windows(0, 10)
    with pytest.raises(UsageError, match="found 3 of 1"):
        found.windows(3, 1)


def test_a_leak_is_refused() -> None:
    random = np.random.default_rng(0)
    judging = [random.integers(0, 300, 5000), random.integers(0, 300, 3000)]
    clean = [random.integers(0, 300, 4000)]
    assert shared_share(clean, judging) == 0
    refuse_overlap(clean, judging)
    leaked = [np.concatenate([clean[0], judging[1][137:1000]])]  # at any place, in part
    share = shared_share(leaked, judging)
    assert share == pytest.approx(863 / 4863, abs=0.02)
    with pytest.raises(DataError, match=r"1\d% of the calibration text is also in the text that judges"):
        refuse_overlap(leaked, judging)
    licence = random.integers(0, 300, 50)
    refuse_overlap([np.concatenate([licence, *clean])], [np.concatenate([licence, *judging])])  # what recurs in honest texts


def test_short_texts_leak_too() -> None:
    short = [np.arange(RUN - 5), np.arange(3)]
    assert shared_share(short, [np.arange(3)]) == 0.5
    assert shared_share(short, [np.arange(4)]) == 0


def test_tokenizers_that_do_not_fit_are_refused(model: Case, tmp_path: Path) -> None:
    small = Case(model.path, Decoder("llama", 1, 8, 1, 1, 8, 8, 300, 64, "rms", 1e-6, "silu", True, None))
    with pytest.raises(ModelError, match="tokens up to 319; the model's vocabulary is 300"):
        Tokenizer.open(small)
    with pytest.raises(ModelError, match="no tokenizer"):
        Tokenizer.open(Case(tmp_path, model.decoder))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer.open(Case(tmp_path, model.decoder))


def test_a_tokenizer_that_cuts_and_fills_up_does_neither_here(model: Case, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Inner

    from lowbit.llm.evaluate.text import open_text

    inner = Inner.from_file(str(model.path / "tokenizer.json"))
    inner.enable_truncation(4)
    inner.enable_padding(length=400)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    plain = Tokenizer.open(model).encode(SENTENCES[0])
    assert 4 < len(plain) < 400
    assert Tokenizer.open(Case(tmp_path, model.decoder)).encode(SENTENCES[0]) == plain
    assert open_text(tmp_path).encode(SENTENCES[0]) == plain
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        open_text(tmp_path).encode("a")


def test_the_small_llama_has_as_many_scored_tokens_as_its_readme_says(shared_data: Path) -> None:
    need("tokenizers")
    from lowbit.llm.folder import SourceFolder

    folder = shared_data / "small-llama"
    source = SourceFolder.open(folder)
    found = [read_texts(source, file).tokens // 256 * 255 for file in sorted(folder.glob("eval_*.txt"))]
    assert sum(found) == 186_405
