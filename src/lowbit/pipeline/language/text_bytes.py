"""How many bytes of text tokens spell, so that perplexity can be told in bits a byte: comparable between tokenizers.

Bits a byte are nats a token over ln 2, times tokens a byte of the same text (Gao et al. 2020, The Pile, arXiv 2101.00027, section 3.1). The
text here is windows of tokens, which may begin and end within a character; so bytes are counted token by token, from what tokenizer.json
says that each stands for. That is exact for the two kinds that language models have:

    byte-level BPE      GPT-2, Llama 3, Qwen, Phi: a token is spelled in letters that stand for one byte each
    SentencePiece       Llama 2, Mistral, Phi-3: a token is text with U+2581 for a space, or a byte, as <0x0A>

Other tokenizers drop what stood in the text (spaces, cases), and there is no number for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.llm.evaluate.windows import Documents
from lowbit.types import Array

SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SENTENCEPIECE = frozenset({"ByteFallback", "Metaspace"})


def sizes_of(documents: Documents, tokenizer: Path) -> dict[str, int] | None:
    """Bytes of the text of each document.

    Args:
        documents: Names and tokens.
        tokenizer: Folder with tokenizer.json.

    Returns:
        Name -> bytes; None where tokens do not say what they spell.
    """
    try:
        lengths = token_bytes(json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    if lengths is None:
        return None
    found = {}
    for name, tokens in documents:
        each = lengths[tokens] if len(tokens) and int(tokens.max()) < len(lengths) else np.full(1, -1)
        if each.min() < 0:
            return None
        found[name] = int(each.sum())
    return found


def token_bytes(raw: Mapping[str, Any]) -> Array | None:
    """Bytes of each token's text, int64 [V].

    Args:
        raw: tokenizer.json.

    Returns:
        -1 for numbers without a token and for the unknown token; None for tokenizers of another kind.
    """
    kinds = {each.get("type") for each in _steps(raw.get("decoder"))}
    if "ByteLevel" not in kinds and not kinds & _SENTENCEPIECE:
        return None
    model = raw.get("model") or {}
    vocabulary = model.get("vocab") or {}
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else ((piece, index) for index, (piece, _) in enumerate(vocabulary))
    spelled = dict(_spelled(pieces, byte_level="ByteLevel" in kinds))
    for each in raw.get("added_tokens") or []:
        spelled[each["id"]] = len(each["content"].encode())
    for unknown in _unknown(model, vocabulary):
        spelled[unknown] = -1
    found = np.full(max(spelled, default=-1) + 1, -1, np.int64)
    found[list(spelled)] = list(spelled.values())
    return found


def _spelled(pieces: Any, *, byte_level: bool) -> Iterator[tuple[int, int]]:
    """Token and bytes of its text."""
    for piece, index in pieces:
        if byte_level:
            yield index, len(piece)
        else:
            yield index, 1 if _BYTE.fullmatch(piece) else len(piece.replace(SPACE, " ").encode())


def _unknown(model: Mapping[str, Any], vocabulary: Any) -> list[int]:
    """The token that stands for whatever has none, if there is one."""
    if model.get("unk_id") is not None:
        return [int(model["unk_id"])]
    word = model.get("unk_token")
    return [vocabulary[word]] if isinstance(vocabulary, dict) and word in vocabulary else []


def _steps(decoder: Any) -> Iterator[Mapping[str, Any]]:
    """A decoder's steps; one that is no sequence is its only one."""
    if isinstance(decoder, Mapping):
        inner = decoder.get("decoders")
        yield from ([decoder] if not isinstance(inner, list) else (step for each in inner for step in _steps(each)))
