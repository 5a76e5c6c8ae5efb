"""Text data: columns, labels, tokens, and the file that serving reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lowbit.data import Dataset, Preprocess, open_data, prepare
from lowbit.data.text import Text, Words, bucket
from lowbit.errors import DataError, LowbitError, ModelError, UsageError
from lowbit.types import TensorInfo

VOCABULARY = {
    name: index for index, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very", "##ly", "par", "##is"])
}
INPUTS = tuple(TensorInfo(name, ("batch", "tokens"), "int64") for name in ("input_ids", "attention_mask"))


def tokenizer() -> str:
    found = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return str(found.to_str())


def steps(**settings: Any) -> Preprocess:
    return Preprocess(kind="text", text=Text(tokenizer(), **{"max_length": 64, **settings}))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(n: int = 10, label: str = "{}") -> list[tuple[str, str]]:
    return [("good film" if i % 2 else f"very bad film {'very ' * (i // 2)}".strip(), label.format(i % 2)) for i in range(n)]


def opened(path: Path, preprocess: Preprocess, **options: Any) -> Dataset:
    return open_data(path, INPUTS, preprocess, **options)


@pytest.mark.parametrize("form", ["plain.tsv", "header.tsv", "header.csv", "rows.jsonl"])
def test_the_same_text_in_any_file_gives_the_same_samples(tmp_path: Path, form: str) -> None:
    mark = "\t" if form.endswith("tsv") else ","
    lines = [mark.join(row) for row in rows()]
    if form == "rows.jsonl":
        lines = [json.dumps({"sentence": text, "label": int(label)}) for text, label in rows()]
    elif form.startswith("header"):
        lines = [f"sentence{mark}label", *lines]
    data = opened(write(tmp_path, form, "\n".join(lines) + "\n"), steps())
    assert len(data) == 10
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1] * 5
    batch = next(data.batches(2))
    assert batch.feeds["input_ids"].shape == (2, 16)  # the longest has 9 tokens
    assert batch.feeds["input_ids"][0].tolist() == [2, 7, 5, 6, 3] + [0] * 11
    assert batch.feeds["attention_mask"][1].tolist() == [1] * 4 + [0] * 12


def test_quotes_in_tsv_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", "".join(f'"good film {"very " * i}\t{i % 2}\n' for i in range(9)))
    assert len(opened(path, steps())) == 9


def test_class_names_get_the_models_numbers(tmp_path: Path) -> None:
    names = ["positive", "NEGATIVE"]
    path = write(tmp_path, "d.tsv", "".join(f"{text}\t{names[int(label)]}\n" for text, label in rows()))
    data = opened(path, steps(labels=("negative", "positive")))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0] * 5
    with pytest.raises(DataError, match="The labels are NEGATIVE, positive; the model's classes are bad, good"):
        opened(path, steps(labels=("bad", "good")))


def test_pairs_are_told_apart_by_type_and_cut_to_the_longest(tmp_path: Path) -> None:
    lines = [json.dumps({"premise": "good film " * (i + 1), "hypothesis": "bad film", "label": i % 2}) for i in range(10)]
    data = opened(write(tmp_path, "d.jsonl", "\n".join(lines)), steps(form="pair", max_length=12))
    inputs = (*INPUTS, TensorInfo("token_type_ids", ("batch", "tokens"), "int64"))
    feeds = prepare([("good film", "bad film")], inputs, data.preprocess)
    assert feeds["input_ids"][0].tolist() == [2, 4, 6, 3, 5, 6, 3, 0, 0, 0, 0, 0]
    assert feeds["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert next(data.batches(10)).feeds["input_ids"].shape == (10, 12)


def test_two_columns_of_an_embedding_are_two_samples_that_share_a_similarity(tmp_path: Path) -> None:
    lines = [json.dumps({"sentence1": f"good {'very ' * i}", "sentence2": f"bad {'film ' * i}", "score": i / 2}) for i in range(10)]
    data = opened(write(tmp_path, "d.jsonl", "\n".join(lines)), steps(form="both"))
    assert len(data) == 20
    assert data.labels is not None
    assert data.labels[:4].tolist() == [[0, 0], [0, 0], [1, 0.5], [1, 0.5]]
    plain = opened(write(tmp_path, "d.tsv", "".join(f"{text}\t{label}\n" for text, label in rows())), steps(form="both"))
    assert plain.labels is None  # a class is no similarity


def test_words_carry_their_label_at_their_first_token(tmp_path: Path) -> None:
    lines = [json.dumps({"tokens": ["very", "Paris", "good"], "tags": ["O", "LOC", 0]})] * 8
    data = opened(write(tmp_path, "d.jsonl", "\n".join(lines)), steps(form="words", labels=("O", "LOC")))
    assert data.labels is not None
    assert next(data.batches(1)).feeds["input_ids"][0, :6].tolist() == [2, 7, 9, 10, 4, 3]
    assert data.labels[0].tolist() == [-100, 0, 1, -100, 0] + [-100] * 11
    short = write(tmp_path, "s.jsonl", json.dumps({"tokens": ["very"], "tags": ["O", "O"]}))
    with pytest.raises(DataError, match="Sample 1 has 1 words and 2 labels"):
        opened(short, steps(form="words"))


def test_answers_become_first_and_last_token(tmp_path: Path) -> None:
    row = {"question": "bad film", "context": "very good Paris film", "answers": {"text": ["Paris film"], "answer_start": [10]}}
    none = {**row, "answers": {"text": [], "answer_start": []}}
    path = write(tmp_path, "d.jsonl", "\n".join(map(json.dumps, [row, none] * 4)))
    data = opened(path, steps(form="question"))
    assert data.labels is not None
    # [CLS] bad film [SEP] very good par ##is film [SEP]
    assert data.labels[:2].tolist() == [[6, 8], [0, 0]]
    wrong = write(tmp_path, "w.jsonl", json.dumps({**row, "answers": {"text": ["Rome"], "answer_start": [0]}}))
    with pytest.raises(DataError, match="the answer 'Rome' is not in its context"):
        opened(wrong, steps(form="question"))


def test_a_question_that_is_too_long_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"question": "word " * 80, "context": "word word", "answer": "word"}) + "\n")
    with pytest.raises(DataError, match="A sample does not fit in 64 tokens"):
        opened(path, steps(form="question"))


@pytest.mark.parametrize("extra", [{"answer": 1990}, {"answer": "x", "answer_start": "here"}, {"answers": ["nowhere"]}])
def test_answers_of_an_odd_kind_are_refused_kindly(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"question": "who", "context": "word word", **extra}) + "\n")
    with pytest.raises(DataError, match="is not in its context"):
        opened(path, steps(form="question"))


def test_the_steps_come_back_from_their_files(tmp_path: Path) -> None:
    before = steps(columns=("sentence",), length=32, labels=("no", "yes"), pad_left=True)
    write(tmp_path, "preprocess.yaml", before.to_yaml())
    for name, content in before.files().items():
        write(tmp_path, name, content)
    after = Preprocess.load(tmp_path / "preprocess.yaml")
    assert after == before
    for sample in ("good film", {"sentence": "good film", "other": 3}):
        feeds = prepare([sample], INPUTS, after)
        assert feeds["input_ids"][0].tolist() == [0] * 28 + [2, 4, 6, 3]  # padded on the left
    write(tmp_path, "tokenizer.json", before.files()["tokenizer.json"] + " ")
    with pytest.raises(ModelError, match="its digest differs"):
        Preprocess.load(tmp_path / "preprocess.yaml")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"'tokenizer.json' cannot be read"):
        Preprocess.load(tmp_path / "preprocess.yaml")
    with pytest.raises(UsageError, match="beside which the tokenizer is"):
        Preprocess.from_yaml(before.to_yaml())


def test_content_is_the_text_not_its_tokens(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", "".join(f"{text}\t{label}\n" for text, label in rows()))
    short, long = opened(path, steps()), opened(path, steps(length=64))
    assert short.hashes.tolist() == long.hashes.tolist()
    assert len(set(short.hashes.tolist())) == 6  # five different bad films, one good


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("d.tsv", "a b\tc\td\te\n" * 9, DataError, "4 columns and no header line"),
        ("d.tsv", "text\tlabel\n" + "good\t1\n" * 8 + "bad\n", DataError, "d.tsv, row 9: 1 fields where there are 2 columns"),
        ("d.jsonl", "[1]\n", DataError, "d.jsonl, line 1: a list where an object is expected"),
        ("d.jsonl", "{\n", DataError, "d.jsonl, line 1: not JSON"),
        ("d.jsonl", '{"left": "a", "right": "b", "label": 1}\n', DataError, "not clear: it has left, right, label"),
        ("d.jsonl", '{"text": 3, "label": 1}\n', DataError, "row 1: A sample is int '3'; this model takes a text"),
        ("d.jsonl", "", DataError, "holds no samples"),
        ("d.npz", "x", UsageError, "is no file of text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, text: str, kind: type[LowbitError], message: str) -> None:
    with pytest.raises(kind, match=message):
        opened(write(tmp_path, name, text), steps())


def test_a_column_and_a_label_can_be_named(tmp_path: Path) -> None:
    lines = [json.dumps({"left": text, "right": "x", "stars": int(label)}) for text, label in rows()]
    data = opened(write(tmp_path, "d.jsonl", "\n".join(lines)), steps(columns=("left",)), target="stars")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1] * 5
    with pytest.raises(DataError, match="has no column 'starz'"):
        opened(tmp_path / "d.jsonl", steps(columns=("left",)), target="starz")


def test_a_sample_that_is_no_text_is_refused() -> None:
    text = steps().text
    assert text is not None
    with pytest.raises(DataError, match="takes a text"):
        text.sample(3)
    with pytest.raises(DataError, match=r"lacks sentence. It has text"):
        replace(text, columns=("sentence",)).sample({"text": "x"})
    with pytest.raises(DataError, match="takes a pair of texts"):
        replace(text, form="pair").sample("alone")


@given(st.integers(1, 5000))
def test_a_bucket_holds_its_length_and_is_not_twice_too_long(length: int) -> None:
    found = bucket(length)
    assert found >= length
    assert found <= max(16, 2 * length)


@given(st.lists(st.sampled_from(["good", "bad", "film", "paris", "unheard"]), min_size=1, max_size=80), st.integers(4, 40))
def test_feeds_have_the_asked_length_and_the_mask_counts_real_tokens(words: list[str], length: int) -> None:
    text = Text(tokenizer(), max_length=64, length=length)
    feeds = text.feeds([" ".join(words)], INPUTS)
    assert feeds["input_ids"].shape == (1, length)
    plain = len(Text(tokenizer(), max_length=10_000).encode([Words((" ".join(words),))])[0].ids)
    assert feeds["attention_mask"].sum() == min(plain, length)
    assert (feeds["input_ids"] != 0).sum() == min(plain, length)
    assert np.array_equal(feeds["attention_mask"], feeds["input_ids"] != 0)
