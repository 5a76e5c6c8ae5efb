"""Encoders with the plain signature that an exported graph has: arrays in, arrays out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
}


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one.

    Attributes:
        mode: "mean", "first", "max" or "mean_sqrt", over real tokens.
        normalize: Whether the result has length 1.
    """

    mode: str
    normalize: bool


def pooling_of(source: Path) -> Pooling | None:
    """The pooling of a sentence-transformers folder; None where it is none.

    Raises:
        UsageError: a step that is not handled.
        ModelError: its files are damaged.
    """
    listing = source / "modules.json"
    if not listing.is_file():
        return None
    try:
        modules = [(str(entry["type"]).rsplit(".", 1)[-1], str(entry.get("path", ""))) for entry in json.loads(listing.read_text())]
        folder = next((path for kind, path in modules if kind == "Pooling"), None)
        settings = {} if folder is None else json.loads((source / folder / "config.json").read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The sentence encoder's files in '{source.name}' are damaged: {error}.", "Copy the whole folder again."
        ) from error
    kinds = [kind for kind, _ in modules]
    if foreign := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise UsageError(f"'{source.name}' has the step {', '.join(foreign)}; Transformer, Pooling and Normalize are handled.")
    chosen = [mode for key, mode in MODES.items() if settings.get(key)]
    if isinstance(settings.get("pooling_mode"), str):  # newer folders name it
        chosen = [{"mean": "mean", "cls": "first", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt"}.get(settings["pooling_mode"], "")]
    if len(chosen) != 1 or not chosen[0]:
        raise UsageError(
            f"'{source.name}' pools by {', '.join(chosen) or 'something else'}; one of {', '.join(MODES.values())} is handled."
        )
    return Pooling(chosen[0], "Normalize" in kinds)


def encoder_module(model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], pooling: Pooling | None = None) -> nn.Module:
    """A module that takes arrays in this order and returns the named outputs.

    Args:
        model: Of transformers.
        inputs: Names of its arguments.
        outputs: Names in its answer; one of any name where `pooling` makes it.
        pooling: Of a sentence encoder.
    """
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Any:
            given = dict(zip(inputs, (first, second, third), strict=False))
            answer = self.model(**given, return_dict=True)
            if pooling is None:
                return {name: answer[name] for name in outputs}
            return {outputs[0]: pooled(answer.last_hidden_state, given["attention_mask"], pooling)}

    Encoder.__name__ = type(model).__name__  # what messages name
    return Encoder()


def pooled(hidden: Tensor, mask: Any, pooling: Pooling) -> Tensor:
    """Token vectors [N, T, D] with mask [N, T] as one vector each [N, D] (Reimers & Gurevych 2019)."""
    from torch.nn import functional

    weights = mask[:, :, None].to(hidden.dtype)
    if pooling.mode == "first":
        vector = hidden[:, 0]
    elif pooling.mode == "max":
        vector = (hidden + (weights - 1) * 1e9).amax(1)
    else:
        count = weights.sum(1).clamp(min=1e-9)
        vector = (hidden * weights).sum(1) / (count if pooling.mode == "mean" else count.sqrt())
    return functional.normalize(vector, dim=1) if pooling.normalize else vector
