"""Whether a request fits a model, and the answer as it was asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from lowbit.serving.protocol.refusals import Malformed
from lowbit.serving.protocol.requests import Wanted
from lowbit.serving.protocol.wire import datatype_of
from lowbit.types import Array, Feeds, TensorInfo


def check(inputs: tuple[TensorInfo, ...], feeds: Feeds) -> None:
    """Compares feeds with what a model takes.

    Raises:
        Malformed: naming the first input that is missing, unknown, or of the wrong type or shape, or inputs with different numbers of rows.
    """
    declared = {info.name: info for info in inputs}
    for name in feeds:
        if name not in declared:
            raise Malformed(f"The model has no input '{name}'. Its inputs: {', '.join(declared)}.")
    for info in inputs:
        if info.name not in feeds:
            raise Malformed(f"Input '{info.name}' is missing. The model's inputs: {', '.join(declared)}.")
        _check_array(info, feeds[info.name])
    rows = {info.name: len(feeds[info.name]) for info in inputs if info.shape}
    if len(set(rows.values())) > 1:
        raise Malformed(f"The inputs have different numbers of rows: {', '.join(f'{name} {n}' for name, n in rows.items())}.")
    if 0 in rows.values():
        raise Malformed("The inputs have no rows: the first axis is 0.")


def _check_array(info: TensorInfo, array: Array) -> None:
    if not _same_kind(array.dtype, info.dtype):
        raise Malformed(f"Input '{info.name}' is {datatype_of(array.dtype.name)}; the model takes {datatype_of(info.dtype)}.")
    fits = len(array.shape) == len(info.shape) and all(
        not isinstance(want, int) or want == got for want, got in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(str(dim) if isinstance(dim, int) else "any" for dim in info.shape)
        raise Malformed(f"Input '{info.name}' has shape {list(array.shape)}; the model takes [{shape}].")


@lru_cache(256)  # numpy works a dtype's name out each time
def _same_kind(dtype: np.dtype[Any], name: str) -> bool:
    return dtype.name == name or datatype_of(dtype.name) == datatype_of(name)


def wanted(outputs: tuple[TensorInfo, ...], asked: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    """What is to be given back: everything, unless somebody asks for less.

    Raises:
        Malformed: there is no such output.
    """
    names = [info.name for info in outputs]
    for each in asked:
        if each.name not in names:
            raise Malformed(f"The model has no output '{each.name}'. Its outputs: {', '.join(names)}.")
    return asked or tuple(Wanted(name) for name in names)


def shown(array: Array, wanted: Wanted) -> Array:
    """The tensor, or its top classes as "value:index" strings (the protocol's classification extension).

    Raises:
        Malformed: strings have no top classes.
    """
    if not wanted.classification:
        return array
    if array.dtype.kind in "OSU":
        raise Malformed(f"Output '{wanted.name}' is strings: it has no top classes.")
    flat = np.asarray(array.reshape(len(array), -1), np.float64)  # also what has no sign, or a lowest value without a counterpart
    top = np.argsort(-flat, axis=1, kind="stable")[:, : wanted.classification]
    named = [[f"{flat[row, column]:.6f}:{column}".encode() for column in columns] for row, columns in enumerate(top)]
    return np.array(named, object)
