"""A neutral model as a program of PyTorch in floating point, with every size fixed: one sample, where the model takes any number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.errors import ModelError, UsageError
from lowbit.export.litert.recalibrated.ends import End
from lowbit.export.named_session import fixed_size
from lowbit.export.neutral import Neutral
from lowbit.types import Array, Feeds, TensorInfo

if TYPE_CHECKING:
    import onnx_ir as ir

CHANNELS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class Written:
    """A program that was written.

    Attributes:
        file: Where; saved by torch.export.
        inputs: In the program's order, which is the source's.
        outputs: Likewise; sizes that only the converter knows are 0.
    """

    file: Path
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]


def write(source: Neutral, folder: Path, length: int) -> Written:
    """Writes the graph as the candidate has it, without its roundings of activations.

    Args:
        source: Not changed.
        folder: For the program, and an ONNX file on the way.
        length: What every open axis beside the first becomes; 0 takes what the source's samples have.

    Raises:
        ModelError: an open axis and no length, or an operator that the torch twin does not know.
    """
    from lowbit.graph import ir_files
    from lowbit.graph.spelling import name_gelus
    from lowbit.train.pt2e import write_program

    sizes = sizes_of(source.inputs, source.samples, length)
    model = source.model.clone()
    name_gelus(model)
    ir_files.write(model, folder / "model.onnx")
    rows = fixed_size(source.inputs) or 1
    inputs = tuple(_end(info, rows, sizes, _is_image(model, info)) for info in source.inputs)
    outputs = tuple(_end(info, rows, sizes, _is_image(model, info)) for info in source.outputs)
    example = {end.name: np.ones(end.shape, end.dtype) for end in inputs}  # a mask of zeros would hide everything
    return Written(write_program(folder / "model.onnx", folder / "model.pt2", example), inputs, outputs)


def sizes_of(inputs: tuple[TensorInfo, ...], samples: Feeds, length: int) -> Mapping[tuple[str, int], int]:
    """Input and axis -> its size in the file, of axes that are open beside the first.

    Args:
        inputs: The source's.
        samples: Real ones [N, ...], where there are any.
        length: For all of them; 0 takes the samples'.

    Raises:
        UsageError: a length below 0.
        ModelError: neither says it.
    """
    if length < 0:
        raise UsageError(f"length={length} is no size.", "Say how many tokens: --set length=64; 0 takes what the samples of --data have.")
    places = [(info.name, axis) for info in inputs for axis, size in enumerate(info.shape) if axis and not isinstance(size, int)]
    if places and not length and not samples:
        named = ", ".join(f"'{name}' axis {axis}" for name, axis in places)
        raise ModelError(
            f"LiteRT needs static shapes, and the model's input {named} has any size.",
            "Say which: --set length=64; shorter samples are filled up with zeros. With --data, it is that of the samples.",
        )
    return {(name, axis): length or samples[name].shape[axis] for name, axis in places}


def laid(values: Array, end: End, dtype: np.dtype[np.generic]) -> Array:
    """Samples [N, ...] in the file's layout and type, filled up to its sizes."""
    pads = [(0, end.shape[axis] - values.shape[axis] if axis in end.open else 0) for axis in range(values.ndim)]
    if any(missing < 0 for _, missing in pads):
        raise ModelError(
            f"Samples of '{end.name}' have shape {list(values.shape[1:])}; {list(end.shape[1:])} was asked for.", "Give a larger length."
        )
    values = np.pad(values, pads)
    return np.ascontiguousarray(values if end.permutation is None else values.transpose(end.permutation), dtype)


def _end(info: TensorInfo, rows: int, sizes: Mapping[tuple[str, int], int], is_image: bool) -> End:
    """An input or output for so many samples a call; an output's open axes that follow an input's have its size's name."""
    shape, free = [rows], {}
    for axis, size in enumerate(info.shape[1:], 1):
        shape.append(size if isinstance(size, int) else sizes.get((info.name, axis), 0))
        if not isinstance(size, int):
            free[axis] = size if isinstance(size, str) else f"{info.name} {axis}"
    return End(info.name, info.dtype, tuple(shape), free, CHANNELS_LAST if is_image else None)


def _is_image(model: ir.Model, info: TensorInfo) -> bool:
    """Whether an input or output lies channels first: four axes, and no step turns it right there."""
    if len(info.shape) != 4 or not np.issubdtype(np.dtype(info.dtype), np.floating):
        return False
    for value in model.graph.inputs:
        if value.name == info.name:
            return not all(node.op_type == "Transpose" for node, _ in value.uses())
    for value in model.graph.outputs:
        if value.name == info.name:
            maker = value.producer()
            return maker is None or maker.op_type != "Transpose"
    return False
