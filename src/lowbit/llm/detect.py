"""Whether a folder holds a language model; reads config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEADS = ("ForCausalLM", "LMHeadModel")
"""How transformers ends the names of architectures that predict the next token."""


def is_language_model(model: Any) -> bool:
    """True for a Hugging Face folder whose architecture predicts the next token; anything damaged is left to those who open it."""
    if not isinstance(model, str | Path) or not (config := Path(model) / "config.json").is_file():
        return False
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = told.get("architectures") if isinstance(told, dict) else None
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(HEADS) for name in names)
