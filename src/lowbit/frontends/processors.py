"""A folder's tokenizer or image processor as lowbit's preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.data.preprocess import Preprocess
from lowbit.data.text import FEEDS, Text
from lowbit.errors import ModelError, UsageError

LONGEST = 512
"""Tokens where neither the tokenizer nor the model says how many it takes."""

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
"""Files that hold a tokenizer; one of them is there."""

SAVE_TOKENIZER = "Save the model's own tokenizer there: tokenizer.save_pretrained(folder)."

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


def read_text(source: Path, config: Mapping[str, Any], form: str) -> tuple[Text, list[str]]:
    """The tokenizer of a folder, and the inputs that the model takes from it.

    Raises:
        ModelError: there is none, or it has no fast form.
    """
    from transformers import AutoTokenizer

    if not any((source / name).is_file() for name in TOKENIZERS):
        # transformers would make one with an empty vocabulary, without a word.
        raise ModelError(f"'{source.name}' has no tokenizer: none of {', '.join(TOKENIZERS)}.", SAVE_TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        content = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # transformers raises a dozen kinds for a missing or damaged tokenizer
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"'{source.name}' has no tokenizer that can be used: {first[:200]}", SAVE_TOKENIZER) from error
    size = config.get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise ModelError(f"The tokenizer of '{source.name}' knows {len(tokenizer):,} tokens, the model {size:,}.", SAVE_TOKENIZER)
    names = [name for name in FEEDS if name in ("input_ids", "attention_mask") or name in tokenizer.model_input_names]
    text = Text(
        tokenizer=plain_tokenizer(content),
        form=form,
        max_length=longest(source, config, tokenizer.model_max_length),
        pad_id=tokenizer.pad_token_id or 0,
        pad_token=str(tokenizer.pad_token or "[PAD]"),
        pad_left=tokenizer.padding_side == "left",
        labels=label_names(config),
    )
    return text, names


def plain_tokenizer(content: str) -> str:
    """tokenizer.json without padding and truncation, which are said beside it; the same text whatever was used before."""
    return json.dumps({**json.loads(content), "padding": None, "truncation": None}, ensure_ascii=False)


def longest(source: Path, config: Mapping[str, Any], tokenizer: int) -> int:
    """Tokens that a model takes: the least of what the tokenizer, the position table and the sentence encoder say."""
    limits = [tokenizer] if tokenizer < 1_000_000 else []  # transformers writes 10^30 for "no limit"
    if isinstance(positions := config.get("max_position_embeddings"), int):
        # RoBERTa counts positions from the padding's number on.
        shift = (config.get("pad_token_id") or 0) + 1 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
        limits.append(positions - shift)
    for name in ("sentence_bert_config.json",):
        if (source / name).is_file() and isinstance(found := json.loads((source / name).read_text()).get("max_seq_length"), int):
            limits.append(found)
    return min(limits, default=LONGEST)


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by number; empty where the folder has none but LABEL_0 and so on."""
    table = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    names = tuple(table[number] for number in sorted(table))
    generic = names == tuple(f"LABEL_{number}" for number in range(len(names)))
    return () if generic or len(set(names)) != len(names) else names


def image_preprocess(found: Mapping[str, Any], name: str) -> Preprocess:
    """An image processor's settings as preprocessing.

    Args:
        found: The content of preprocessor_config.json.
        name: Of the folder.

    Raises:
        UsageError: a step that has no counterpart.
    """
    if found.get("do_pad") or found.get("do_flip_channel_order") or found.get("do_reduce_labels"):
        raise UsageError(f"The image processor of '{name}' pads or flips channels, which is not handled.", "Give --preprocess FILE.yaml.")
    resample = found.get("resample", 2)
    if resample not in RESAMPLE:
        raise UsageError(f"The image processor of '{name}' resizes with Pillow's method {resample}; 2 and 3 are handled.")
    scale = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    normal = found.get("do_normalize", True)
    crop = _pair(found.get("crop_size")) if found.get("do_center_crop") else None
    resize = _resize(found.get("size"), name) if found.get("do_resize", True) else None
    if isinstance(resize, int) and "crop_pct" in found and resize < 384:  # ConvNeXT
        crop, resize = (resize, resize), int(resize / found["crop_pct"])
    elif isinstance(resize, int) and "crop_pct" in found:
        resize = (resize, resize)
    return Preprocess(
        kind="image",
        resize=resize,
        crop=crop,
        keep_exact=False,
        interpolation=RESAMPLE[resample],
        channels="rgb",
        scale=1 / 255 if abs(scale - 1 / 255) < 1e-9 else scale,
        mean=tuple(found.get("image_mean") or ()) if normal else (),
        std=tuple(found.get("image_std") or ()) if normal else (),
        note=f"the image processor of {name}",
    )


def _resize(size: Any, name: str) -> Any:
    """Short side, (height, width), or None."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"])
    if size is None or (isinstance(size, Mapping) and not {"height", "width"} <= set(size)):
        raise UsageError(f"The image processor of '{name}' has the size {size}, which is not understood.", "Give --preprocess FILE.yaml.")
    return _pair(size)


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return None if size is None else (int(size), int(size))


def image_size(preprocess: Preprocess, config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the model's input.

    Raises:
        UsageError: neither the image processor nor the model fixes them.
    """
    fixed = config.get("image_size")
    size = preprocess.size or (_pair(fixed) if isinstance(fixed, int) else tuple(fixed) if fixed else None)
    if size is None:
        raise UsageError("Neither the image processor nor config.json says what size images have.", "Give --preprocess FILE.yaml.")
    return int(size[0]), int(size[1])
