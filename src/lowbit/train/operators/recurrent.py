"""Recurrent layers, by torch's own kernels with the gates in torch's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator

_LSTM_GATES, _GRU_GATES = (0, 2, 3, 1), (1, 0, 2)
"""Places of torch's gates in ONNX's order: input, output, forget, cell; update, reset, hidden."""


@operator("LSTM")
def lstm(
    given: Attributes,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Input [T, N, I] -> states [T, directions, N, H], the last state and the last cell [directions, N, H]."""
    if peepholes is not None or given.get("input_forget", 0):
        raise given.refuse("it has peepholes or coupled gates")
    _check(given, lengths, ("Sigmoid", "Tanh", "Tanh"))
    first = [_zeros(x, recurrence) if state is None else state for state in (hidden, cell)]
    parts = _parts(weight, recurrence, bias, _LSTM_GATES)
    return _run(given, x, parts, first, lambda x, states, flat, both: torch.lstm(x, states, flat, True, 1, 0.0, False, both, False))


@operator("GRU")
def gru(
    given: Attributes,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Input [T, N, I] -> states [T, directions, N, H] and the last one [directions, N, H]."""
    if not given.get("linear_before_reset", 0):
        raise given.refuse("its reset gate is applied before the product (linear_before_reset=0)")
    _check(given, lengths, ("Sigmoid", "Tanh"))
    first = [_zeros(x, recurrence) if hidden is None else hidden]
    parts = _parts(weight, recurrence, bias, _GRU_GATES)
    return _run(given, x, parts, first, lambda x, states, flat, both: torch.gru(x, states[0], flat, True, 1, 0.0, False, both, False))


def _check(given: Attributes, lengths: Tensor | None, activations: tuple[str, ...]) -> None:
    """What torch's kernels do not have."""
    own = tuple(given.get("activations") or ())
    usual = all(name == activations[place % len(activations)] for place, name in enumerate(own))
    if lengths is not None or given.get("layout", 0) or given.get("clip") or not usual:
        raise given.refuse("it has lengths, another layout, a clip or other activations")


def _zeros(x: Tensor, recurrence: Tensor) -> Tensor:
    return x.new_zeros(recurrence.shape[0], x.shape[1], recurrence.shape[2])


def _parts(weight: Tensor, recurrence: Tensor, bias: Tensor | None, gates: tuple[int, ...]) -> list[list[Tensor]]:
    """Weight, recurrence and both biases of each direction, gates in torch's order."""
    units = recurrence.shape[2]
    order = torch.cat([torch.arange(gate * units, (gate + 1) * units) for gate in gates]).to(weight.device)
    found = []
    for direction in range(len(weight)):
        both = weight.new_zeros(2 * weight.shape[1]) if bias is None else bias[direction]
        halves = both.reshape(2, -1)
        found.append([weight[direction][order], recurrence[direction][order], halves[0][order], halves[1][order]])
    return found


def _run(
    given: Attributes, x: Tensor, parts: list[list[Tensor]], first: list[Tensor], kernel: Callable[..., tuple[Tensor, ...]]
) -> tuple[Any, ...]:
    backwards = given.get("direction", "forward") == "reverse"
    out, *last = kernel(x.flip(0) if backwards else x, first, [each for direction in parts for each in direction], len(parts) == 2)
    out = out.flip(0) if backwards else out
    states = out.reshape(*out.shape[:2], len(parts), -1).transpose(1, 2)
    return (states, *last)
