"""Making data fit the model: names, shapes, dtypes. A cast that would lose values is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lowbit.errors import DataError
from lowbit.types import Array, TensorInfo

INPUT_ALIASES = ("images", "image", "inputs", "data", "features", "x", "X")
"""Names that stand for the input of a model that has only one."""

LABEL_NAMES = ("labels", "label", "targets", "target", "class_index", "y")
"""Names under which labels are looked for, in this order."""


def describe_input(info: TensorInfo) -> str:
    """One input in words, e.g. "input float32 [batch, 3, 32, 32]"."""
    dims = ", ".join("?" if dim is None else str(dim) for dim in info.shape)
    return f"{info.name} {info.dtype} [{dims}]"


def match_inputs(present: Iterable[str], inputs: Sequence[TensorInfo], described: str | None = None) -> dict[str, str]:
    """Which of the data's names feeds which input of the model.

    Args:
        present: Names in the data.
        inputs: What the model wants.
        described: The data in words, for the message.

    Returns:
        Input name -> name in the data.

    Raises:
        DataError: an input has no counterpart.
    """
    names = list(present)
    found = {info.name: info.name for info in inputs if info.name in names}
    if len(inputs) == 1 and not found:
        alias = next((alias for alias in INPUT_ALIASES if alias in names), None)
        found = {} if alias is None else {inputs[0].name: alias}
    missing = [info.name for info in inputs if info.name not in found]
    if missing:
        wants = "; ".join(describe_input(info) for info in inputs)
        also = " (or `images`)" if len(inputs) == 1 else ""
        raise DataError(
            f"The data has nothing for the model's {'input' if len(missing) == 1 else 'inputs'} {', '.join(missing)}. "
            f"The model wants {wants}. The data has {described or ', '.join(names) or 'nothing'}.",
            f"Name the data's fields as the model's inputs{also}.",
        )
    return found


def find_label(present: Iterable[str], target: str | None) -> str | None:
    """The label's name among the data's names: `target` where it is given, else the usual ones.

    Raises:
        DataError: `target` is not there.
    """
    names = list(present)
    if target is None:
        return next((name for name in LABEL_NAMES if name in names), None)
    if target not in names:
        raise DataError(f"The data has no field '{target}' for the labels. It has {', '.join(names)}.")
    return target


def cast(block: Array, dtype: str) -> Array:
    """An array in the model's dtype.

    Rounding a float to a narrower float is fine; everything else must be exact: integers must fit, floats
    given for integers must be whole, nothing may overflow to infinity.

    Raises:
        DataError: the cast would lose values.
    """
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        raise DataError(f"The model takes {dtype}, which lowbit cannot feed.", "Move that step out of the model.") from None
    if block.dtype == wanted:
        return block
    if block.dtype.kind not in "biuf" or wanted.kind not in "biuf":
        raise DataError(
            f"The model takes {wanted}, the data is {block.dtype}.", "Encode text as numbers first (tokenise it, number its categories)."
        )
    with np.errstate(all="ignore"):
        out = block.astype(wanted)
        if wanted.kind == "f" and block.dtype.kind != "f" and wanted.itemsize >= 4:
            lossy = False  # the largest integer is far below float32's largest number
        elif wanted.kind == "f":
            lossy = not np.isfinite(out).all() and bool(np.isfinite(block).all())
        else:
            # Back and forth catches fractions and wrap-around; signs catch uint64 <-> int64, where wrapping is its own inverse.
            lossy = not (np.array_equal(out.astype(block.dtype), block) and np.array_equal(out < 0, block < 0))
            # A float beyond 2^53 no longer says which whole number it was.
            lossy |= block.dtype.kind == "f" and bool((np.abs(block) > 2**53).any())
    if lossy:
        raise DataError(
            f"The model takes {wanted}, and the data's {block.dtype} values do not fit that exactly.", "Convert the data on purpose first."
        )
    return out


def stack(values: Array | Sequence[Any], name_of: Callable[[int], str] = "sample {}".format) -> Array:
    """N samples as one array [N, ...].

    Raises:
        DataError: their shapes differ.
    """
    if isinstance(values, np.ndarray):
        return values
    first = values[0].shape
    for position, value in enumerate(values):
        if value.shape != first:
            raise DataError(
                f"Samples differ in shape: {name_of(0)} is {list(first)}, {name_of(position)} is {list(value.shape)}.",
                "Pad sequences to one length; for images give `resize` and `crop` in the preprocessing.",
            )
    return np.stack(values)


def fit(block: Array, info: TensorInfo) -> Array:
    """A block of samples as the model takes it: dtype cast, a missing axis of size 1 added, [N, h, w] flattened for [N, k].

    Raises:
        DataError: the shape does not fit, or the cast would lose values.
    """
    wanted = info.shape[1:]
    if block.ndim == len(wanted) and wanted and wanted[-1] == 1:
        block = block[..., np.newaxis]
    elif len(wanted) == 1 and block.ndim > 2 and block[0].size == wanted[0]:
        block = block.reshape(len(block), -1)
    fits = block.ndim == len(wanted) + 1 and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(wanted, block.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"The data does not fit the model in shape: the model wants {describe_input(info)}, "
            f"a sample is {block.dtype} {list(block.shape[1:])}.",
            "Give the data in that shape; for images a preprocessing with `resize` and `crop` brings them to it.",
        )
    try:
        return np.ascontiguousarray(cast(block, info.dtype))
    except DataError as error:
        raise DataError(f"Input {info.name}: {error.message}", error.hint) from error


def main_input(inputs: Sequence[TensorInfo]) -> TensorInfo | None:
    """The input that preprocessing is about: the only one, or the only floating-point one; None where there is none."""
    if len(inputs) == 1:
        return inputs[0]
    floats = [info for info in inputs if info.dtype.startswith("float")]
    return floats[0] if len(floats) == 1 else None


def some(names: Sequence[str]) -> str:
    """The first few names, for messages.

    >>> some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e ...'
    """
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def describe_arrays(arrays: Mapping[str, Any]) -> str:
    """The data's arrays in words, e.g. "images uint8 [100, 28, 28], labels int64 [100]"."""
    return ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
