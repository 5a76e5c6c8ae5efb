"""How to quantize: by ai-edge-quantizer's recipes for 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lowbit.errors import UsageError
from lowbit.export.base import Setting
from lowbit.export.named_session import fixed_size
from lowbit.export.neutral import Neutral

Recipe = Literal["static", "dynamic"]

NAMES: Mapping[Recipe, str] = {"static": "static_wi8_ai8", "dynamic": "dynamic_wi8_afp32"}
"""As ai-edge-quantizer has them."""
SAMPLES = 100
"""That calibrate a static recipe: it takes minima and maxima, which more of them hardly change."""
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def recipe_of(wish: str, *, samples: bool, convolutions: bool) -> Recipe:
    """The recipe to take.

    Args:
        wish: "static", "dynamic", or "auto": static for networks of convolutions where there are samples to measure ranges on, else
            dynamic. Transformers lose much of their accuracy with static activations; the numbers are in docs/guides/targets/litert.md.
        samples: Whether there are some.
        convolutions: Whether the model has some.

    Raises:
        UsageError: static without samples.
    """
    if wish == "static" and not samples:
        raise UsageError("A static recipe measures ranges on real samples, and there are none.", "Give --data, or --set recipe=dynamic.")
    if wish == "auto":
        return "static" if samples and convolutions else "dynamic"
    return "static" if wish == "static" else "dynamic"


def convolutions(source: Neutral) -> bool:
    """Whether a model has convolutions."""
    return any(node.op_type in _CONVOLUTIONS for node in source.model.graph)


def wanted(source: Neutral, settings: Mapping[str, Setting]) -> int:
    """How many samples a model needs: for ranges, in full calls, or one alone for the size of an open axis."""
    is_open = any(not isinstance(size, int) for info in source.inputs for size in info.shape[1:])
    static = recipe_of(str(settings["recipe"]), samples=True, convolutions=convolutions(source)) == "static"
    rows = fixed_size(source.inputs) or 1
    return -(-SAMPLES // rows) * rows if static else int(is_open and not settings["length"])
