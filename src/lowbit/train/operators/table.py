"""The table of operators: ONNX name -> a function of torch tensors.

A function takes the node's attributes, then its inputs in ONNX's order (None for one that is left out), and returns one tensor, or a
tuple where the node has several outputs. What changed between operator sets is told apart by what the node has: `axes` as an
attribute or as an input, say. Integer tensors that describe shapes live on the CPU whatever the model runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import ModelError

Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}
"""What a twin can compute, by ONNX's name."""


@dataclass(frozen=True)
class Attributes:
    """The attributes of one node.

    Attributes:
        op: ONNX's name of the operator.
        name: Of the node, for messages.
        values: Name -> int, float, str, list or numpy array.
        opset: Of the graph.
        outputs: How many outputs the node has, up to the last that is named.
    """

    op: str
    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or a default where the node does not say."""
        return self.values.get(key, default)

    def refuse(self, what: str) -> ModelError:
        """An error for a form of the operator that the twin does not know."""
        return ModelError(
            f"The torch twin cannot compute {self.op} '{self.name}': {what}.",
            "Export the model without it, or stay with post-training quantization, which needs no twin.",
        )


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Enters a function into the table."""

    def enter(function: Operator) -> Operator:
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = function
        return function

    return enter


def ints(values: Tensor | Sequence[int] | int | None) -> list[int] | None:
    """Numbers that came as an attribute or as a tensor, as a list; None where there are none."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        return [int(v) for v in values.reshape(-1).tolist()]
    return [values] if isinstance(values, int) else [int(v) for v in values]


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors on one device: shapes are computed on the CPU and meet activations in a mask or a lookup."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
    return tuple(t.to(device) for t in tensors)
