"""What a method is given and what it returns: one block of a decoder at a time, so that a model larger than memory goes through.

    quantized = METHODS[recipe.method](problem)          every block, first to last
    for index, changed in FINISH[recipe.method](source, table, calibration, recipe): ...     afterwards, where there is such a stage

Files in this room are torch math and import torch at the top; nobody outside imports them at top level except this one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.linear import QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.types import Array

if TYPE_CHECKING:
    import torch

Observer = Callable[[str, "torch.Tensor"], None]
"""Is called with a role and what that linear layer is fed, [N * T, K]."""


class Block(Protocol):
    """A block that runs: lowbit.llm.forward has it.

    Attributes:
        weights: Role -> float32 [O, K]; replaceable, and gradients pass through `run` to whatever is put there.
        floats: Everything else by its name without "blocks.I.": "norm1.weight", "norm1.bias", "attention.q.bias", ...; float32, likewise.
    """

    weights: dict[str, torch.Tensor]
    floats: dict[str, torch.Tensor]

    def run(self, hidden: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """Hidden states [N, T, W] -> the block's output, same shape."""
        ...


@dataclass
class BlockProblem:
    """One block to quantize. The method may change `block`: the caller reads it anew.

    Attributes:
        index: Of the block.
        decoder: What it belongs to.
        block: With the source's weights.
        exact: What the float model feeds this block in calibration, float32 [N, T, W]; None where the recipe does not calibrate.
        reached: The same by the quantized model so far; None likewise, or where it is the same as `exact`.
        recipe: Bits, groups, method, options.
        stored: numpy's name of the type that norms and biases are stored in ("float16", "bfloat16", "float32"): what changes is
            rounded to it, and whatever follows is fitted to the rounded values.
        device: torch's name of where to compute.
    """

    index: int
    decoder: Decoder
    block: Block
    exact: torch.Tensor | None
    reached: torch.Tensor | None
    recipe: LanguageRecipe
    stored: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class QuantizedBlock:
    """What became of a block.

    Attributes:
        linears: Role -> quantized weights. A role that is missing keeps the source's weights.
        floats: Norms and biases that changed, by their names without "blocks.I.", as they are stored. Where a role keeps floating
            point but something was folded into it, it is here as "ROLE.weight".
        facts: Role -> figures for the report, e.g. the relative error of the layer's output in calibration.
    """

    linears: Mapping[str, QuantizedLinear]
    floats: Mapping[str, Array] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Method = Callable[[BlockProblem], QuantizedBlock]
Finish = Callable[[Weights, Weights, Array, LanguageRecipe], Iterator[tuple[int, QuantizedBlock]]]
"""(source, table of all quantized blocks, calibration tokens int32 [N, T], recipe) -> blocks that changed, to be written over the
table's. The whole model is in memory in this stage."""


def calibrates(recipe: LanguageRecipe) -> bool:
    """Whether a recipe looks at hidden states; where not, `BlockProblem.exact` may be None and no block need be run."""
    return recipe.method not in ("none", "rtn", "hqq", "llamacpp") or recipe.smooth is not None or recipe.outliers is not None


def _late(module: str, name: str) -> Callable[..., Any]:
    """A function of this room, imported when it is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"lowbit.llm.methods.{module}"), name)(*arguments, **options)

    call.__name__, call.__qualname__ = name, f"{module}.{name}"
    return call


METHODS: Mapping[str, Method] = {name: _late(name, "quantize") for name in ("rtn", "gptq", "awq", "hqq", "tuned")}
"""By `LanguageRecipe.method`. Each honours the recipe's grids, smoothing and outlier columns."""

FINISH: Mapping[str, Finish] = {"tuned": _late("tuned", "finish")}
"""Methods that work on the whole table afterwards."""
