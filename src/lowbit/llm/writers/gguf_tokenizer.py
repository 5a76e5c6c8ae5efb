"""A Hugging Face tokenizer as llama.cpp's: the same tokens with the same numbers, and where llama.cpp has its rules, the same cuts.

Two kinds can be told: byte-level BPE (llama.cpp's "gpt2"), and BPE with byte fallback, as sentencepiece's models are written
(llama.cpp's "llama"; it merges by scores, and the ranks of the merges are such). Any other goes without: token numbers work all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_MARKS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_AFTER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = rf"[^\r\n\p{{L}}\p{{N}}]?{_MARKS}*{_SMALL}+{_AFTER}|[^\r\n\p{{L}}\p{{N}}]?{_MARKS}+{_SMALL}*{_AFTER}|\p{{N}}{{1,3}}"
_O200K += r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CUTS: Mapping[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_ENDINGS + _WORDS + r"\p{N}{1,3}" + _REST,): "dbrx",
    (_ENDINGS + _WORDS + r"\p{N}" + _REST,): "qwen2",
    (_O200K,): "gpt-4o",
}
"""How a text is cut before it is merged -> llama.cpp's name for it ("dbrx" cuts as "llama-bpe", which also takes whole words first)."""


@dataclass(frozen=True)
class Tokenizer:
    """What a GGUF file says of its tokenizer.

    Attributes:
        model: "gpt2" (byte-level BPE), "llama" (sentencepiece's BPE) or "no_vocab".
        pre: llama.cpp's name for how texts are cut; None where the model has none.
        tokens: UTF-8 of each token.
        types: Of each token.
        merges: "left right", the first merged first.
        scores: Of each token, where merging goes by scores.
        ids: "bos", "eos", "unknown", "padding" -> token.
        add_bos, add_eos: What the tokenizer puts around a text.
        add_space: Before a text.
        chat_template: Jinja, None where there is none.
        notes: What llama.cpp's own tokenizer does differently; token numbers fed to it are not concerned.
    """

    model: str
    pre: str | None = None
    tokens: tuple[bytes, ...] = ()
    types: tuple[int, ...] = ()
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    ids: Mapping[str, int] | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space: bool = False
    chat_template: str | None = None
    notes: tuple[str, ...] = ()


def read_tokenizer(folder: Path, decoder: Decoder) -> Tokenizer:
    """Reads tokenizer.json and what lies beside it.

    Raises:
        ModelError: tokenizer.json is not JSON, or has tokens that the model does not.
    """
    path = folder / "tokenizer.json"
    config = _json(folder / "tokenizer_config.json")
    template = _chat_template(folder, config)
    if not path.is_file():
        return Tokenizer("no_vocab", chat_template=template, notes=("There is no tokenizer.json: llama.cpp gets token numbers only.",))
    whole = _json(path)
    model = whole.get("model") or {}
    byte_level = "ByteLevel" in json.dumps(whole.get("pre_tokenizer"))
    if model.get("type") != "BPE" or not (byte_level or model.get("byte_fallback")):
        kind = model.get("type")
        return Tokenizer(
            "no_vocab", chat_template=template, notes=(f"llama.cpp gets no tokenizer: '{kind}' is none that it is told here.",)
        )
    tokens, types = _tokens(whole, decoder.vocabulary, byte_level)
    pairs = [tuple(each.split(" ", 1)) if isinstance(each, str) else tuple(each) for each in model["merges"]]
    add_bos, add_eos = _around(whole.get("post_processor"))
    pre, notes = _cuts(whole) if byte_level else ("default", [])
    return Tokenizer(
        model="gpt2" if byte_level else "llama",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=tuple(f"{left} {right}" for left, right in pairs) if byte_level else (),
        scores=() if byte_level else _scores(tokens, pairs),
        ids=_ids(whole, config, decoder),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space=not byte_level and "▁" in json.dumps([whole.get("normalizer"), whole.get("pre_tokenizer")], ensure_ascii=False),
        chat_template=template,
        notes=tuple(notes),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"'{path.name}' is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{path.name}' holds no JSON object.")
    return found


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _tokens(whole: Mapping[str, Any], vocabulary: int, byte_level: bool) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """Every number below the vocabulary's size has a token; those that the tokenizer leaves free are never produced."""
    tokens = {index: text for text, index in whole["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, NORMAL)
    if not byte_level:
        types |= {index: BYTE for index, text in tokens.items() if len(text) == 6 and text.startswith("<0x") and text.endswith(">")}
    unknown = whole["model"].get("unk_token")
    for added in whole.get("added_tokens") or ():
        tokens[added["id"]] = added["content"]
        special = UNKNOWN if added["content"] == unknown else CONTROL
        types[added["id"]] = special if added.get("special") else USER_DEFINED
    if max(tokens) >= vocabulary:
        raise ModelError(f"tokenizer.json has tokens up to number {max(tokens)}; the model has logits for {vocabulary}.")
    numbers = range(vocabulary)
    return tuple(tokens.get(i, f"[PAD{i}]").encode() for i in numbers), tuple(types.get(i, UNUSED) for i in numbers)


def _scores(tokens: tuple[bytes, ...], pairs: list[tuple[str, ...]]) -> tuple[float, ...]:
    rank: dict[bytes, int] = {}
    for place, (left, right) in enumerate(pairs):
        rank.setdefault((left + right).encode(), place)
    return tuple(-float(rank.get(token, len(pairs))) for token in tokens)


def _ids(whole: Mapping[str, Any], config: Mapping[str, Any], decoder: Decoder) -> dict[str, int]:
    numbers = {each["content"]: each["id"] for each in whole.get("added_tokens") or ()} | whole["model"]["vocab"]
    found = {}
    for key, named in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        token = config.get(named)
        token = token.get("content") if isinstance(token, dict) else token
        if token in numbers:
            found[key] = numbers[token]
    if decoder.bos is not None:
        found.setdefault("bos", decoder.bos)
    if decoder.eos:
        found.setdefault("eos", decoder.eos[0])
    return found


def _around(post_processor: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Whether a token is put before a text, and after it."""
    steps = (post_processor or {}).get("processors") or [post_processor or {}]
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            single = ["SpecialToken" in each for each in step.get("single") or ()]
            return bool(single and single[0]), bool(single and single[-1])
    return False, False


def _cuts(whole: Mapping[str, Any]) -> tuple[str, list[str]]:
    """llama.cpp's name for how a text is cut, and what is not the same."""
    notes = []
    pre_tokenizer = whole["pre_tokenizer"]
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    signature: list[str] = []
    for step in steps:
        if step["type"] == "Split":
            signature.append(str((step.get("pattern") or {}).get("Regex") or step.get("pattern")))
        elif step["type"] != "ByteLevel" or step.get("use_regex", True):
            signature.append(step["type"])
    name = CUTS.get(tuple(signature))
    if name is None:
        name = "gpt-2"
        notes.append(
            "llama.cpp has no name for how this tokenizer cuts texts; its own tokenizer may give other tokens. Feed token numbers."
        )
    whole_words = bool(whole["model"].get("ignore_merges"))
    if name == "dbrx" and whole_words:
        name, whole_words = "llama-bpe", False
    if whole_words:
        notes.append("This tokenizer takes whole words before it merges; llama.cpp's own does not, and may give other tokens.")
    if any(step.get("add_prefix_space") for step in steps):
        notes.append("This tokenizer puts a space before a text; llama.cpp's own does not.")
    if whole.get("normalizer"):
        kind = whole["normalizer"].get("type")
        notes.append(f"This tokenizer normalises texts first ({kind}); llama.cpp's own does not.")
    return name, notes
