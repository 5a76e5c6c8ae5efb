"""Tiny random transformers folders, made with the real library, and text to feed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SENTENCE = "the film was a quiet joy and nobody left early but some were bored by its slow second half in paris london berlin"
WORDS = SENTENCE.split()
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tokenizer(folder: Path) -> int:
    """A WordPiece tokenizer that knows a few words and all letters; returns the size of its vocabulary."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(97, 123)]
    tokens = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters), ".", "?", ","]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return len(tokens)


def save_encoder(folder: Path, head: str, **settings: Any) -> Path:
    """A random BERT with a head, e.g. "BertForTokenClassification"."""
    import torch
    import transformers

    vocabulary = save_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=vocabulary, **SIZES, initializer_range=0.5, **settings)
    getattr(transformers, head)(config).save_pretrained(folder)
    return folder


def save_image_classifier(folder: Path) -> Path:
    """A random ViT for images of 32 x 32."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    config = ViTConfig(image_size=32, patch_size=8, num_labels=4, initializer_range=0.5, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def sentences(n: int, shortest: int = 3, longest: int = 12) -> list[list[str]]:
    """Random sentences of known words, all different."""
    generator = np.random.default_rng(0)
    found: dict[str, list[str]] = {}
    while len(found) < n:
        words = [str(word) for word in generator.choice(WORDS, generator.integers(shortest, longest))]
        found[" ".join(words)] = words
    return list(found.values())


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
