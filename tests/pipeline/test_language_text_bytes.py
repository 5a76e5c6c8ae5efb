"""Bytes that tokens spell, and the bits a byte that follow: held to the text itself, whatever characters and windows cut."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import SENTENCES, need, write_tokenizer
from language_evidence import baseline, made, speed

from lowbit.llm.evaluate.perplexity import gather
from lowbit.llm.evaluate.windows import Windows, cut
from lowbit.pipeline.language.state import State, apply
from lowbit.pipeline.language.text_bytes import SPACE, sizes_of, token_bytes

TEXTS = (*SENTENCES, "Grüße aus Köln, 漢字 und 🙂🙃!", "\ttabs\n\nand lines  ", "<s>spelled out</s>")


@pytest.fixture(autouse=True, scope="module")
def _packages() -> None:
    need("tokenizers")


def encoded(folder: Path, text: str) -> Any:
    from tokenizers import Tokenizer

    return np.asarray(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids, np.int32)


def sentencepiece(folder: Path) -> None:
    """As Llama 2's: a space is U+2581, one is put before the text, and what has no token is bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [each for each in raw["added_tokens"] if not each["content"].startswith("<0x")]  # as Llama's has them
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(("kind", "before"), [("byte-level", 0), ("sentencepiece", 1)])
def test_the_bytes_are_those_of_the_text(kind: str, before: int, tmp_path: Path) -> None:
    write_tokenizer(tmp_path) if kind == "byte-level" else sentencepiece(tmp_path)
    for text in TEXTS[:-1]:
        found = sizes_of([("a", encoded(tmp_path, text))], tmp_path)
        assert found == {"a": len(text.encode()) + before}, text
    special = encoded(tmp_path, TEXTS[-1])
    assert len(special) < len(TEXTS[-1])
    told = sizes_of([("a", special)], tmp_path)
    assert told is not None
    assert abs(told["a"] - len(TEXTS[-1].encode())) <= 2 * before, "a special token is spelled out; a space comes behind it again"


def test_windows_that_cut_characters_add_up(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    text = "".join(TEXTS[:-1])
    tokens = encoded(tmp_path, text)
    parts = [(str(begin), tokens[begin : begin + 3]) for begin in range(0, len(tokens), 3)]
    found = sizes_of(parts, tmp_path)
    assert found is not None
    assert sum(found.values()) == len(text.encode())


def bits(documents: Sequence[tuple[str, Any]], size: int, nats: float, sizes: dict[str, int] | None) -> float | None:
    windows = Windows(size)
    pieces = cut(documents, windows)
    return gather(documents, pieces, [nats * piece.scored for piece in pieces], windows, sizes).bits_per_byte


def test_bits_a_byte_do_not_depend_on_the_tokenizer(tmp_path: Path) -> None:
    """A model that has no idea but of bytes needs 8 bits for each, however they are cut into tokens."""
    write_tokenizer(tmp_path / "coarse", 320)
    write_tokenizer(tmp_path / "fine", 262)
    for folder in (tmp_path / "coarse", tmp_path / "fine"):
        tokens = encoded(folder, "".join(SENTENCES))
        documents = [("a", tokens)]
        sizes = sizes_of(documents, folder)
        assert sizes is not None
        nats = 8 * math.log(2) * sizes["a"] / len(tokens)
        assert bits(documents, len(tokens), nats, sizes) == pytest.approx(8.0)


def test_no_number_where_tokens_do_not_say(tmp_path: Path) -> None:
    assert token_bytes({"decoder": {"type": "WordPiece"}, "model": {"vocab": {"a": 0}}}) is None
    assert token_bytes({"decoder": None, "model": {"vocab": {"a": 0}}}) is None
    raw = {"decoder": {"type": "Metaspace"}, "model": {"vocab": [["<unk>", 0.0], [f"{SPACE}a", -1.0], ["é", -2.0]], "unk_id": 0}}
    lengths = token_bytes(raw)
    assert lengths is not None
    assert lengths.tolist() == [-1, 2, 2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert sizes_of([("a", np.array([1, 2]))], tmp_path) == {"a": 4}
    assert sizes_of([("a", np.array([1, 0]))], tmp_path) is None, "what the unknown token stood for is not known"
    assert sizes_of([("a", np.array([1, 3]))], tmp_path) is None
    assert sizes_of([("a", np.array([1]))], tmp_path / "absent") is None


def test_the_small_llama_has_the_bytes_of_its_books(shared_data: Path) -> None:
    folder = shared_data / "small-llama"
    for book in sorted(folder.glob("eval_*.txt")):
        text = book.read_text(encoding="utf-8")[:200_000]
        assert sizes_of([("a", encoded(folder, text))], folder) == {"a": len(text.encode())}


def test_another_tuning_has_its_own() -> None:
    pairs = [baseline(), made("int4-gptq@llamacpp", "int4", 0.03, speed(500, 160), 1)]
    state = State(candidates={c.id: c for c, _ in pairs}, facts={c.id: facts for c, facts in pairs})
    facts = {"perplexity": 52.0, "bits_per_byte": 1.25, "divergence": None}
    tuning = {"kv": "int8"}
    apply(state, {"event": "tuned", "id": "int4-gptq@llamacpp", "tuning": tuning, "comparison": None, "facts": facts, "speed": None})
    assert state.facts["int4-gptq@llamacpp"].bits_per_byte == 1.25
