"""A GGUF file read back as a decoder's tensors: so that the reference judges any such file, K-quants too, by its weights alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError, UsageError
from lowbit.llm.decoder import Weights
from lowbit.llm.writers.gguf_names import Target, layout, neighbours
from lowbit.types import Array

if TYPE_CHECKING:
    from gguf import ReaderTensor


def tensors(path: Path) -> Mapping[str, ReaderTensor]:
    """What a file holds, by llama.cpp's names; the data stay on disk.

    Raises:
        ModelError: it is no GGUF file, or a broken one.
        UsageError: the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UsageError("The package gguf, which reads llama.cpp's files, is not installed.", "pip install 'lowbit[llamacpp]'") from error
    if not path.is_file():
        raise ModelError(f"There is no file '{path}'.")
    try:
        return {each.name: each for each in GGUFReader(path).tensors}
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"'{path.name}' is no GGUF file that can be read: {error}") from error


def types(path: Path) -> Counter[str]:
    """How many weights are held in each type: what a preset really did.

    Raises:
        ModelError, UsageError: as `tensors`.
    """
    found: Counter[str] = Counter()
    for each in tensors(path).values():
        found[each.tensor_type.name] += int(each.n_elements)
    return found


class GgufWeights:
    """Fulfils Weights: the tensors of a GGUF file under our names, dequantized.

    Args:
        file: The GGUF file.
        source: What it was made from; tells architecture and names.

    Raises:
        ModelError: no GGUF file, or one that lacks a tensor.
    """

    def __init__(self, file: Path, source: Weights) -> None:
        self.decoder = source.decoder
        self.path = source.path
        self._names = source.names()
        self._tensors = tensors(file)
        self._places: dict[str, tuple[Target, int, int]] = {}
        for target in layout(self.decoder, self._names):
            if target.name not in self._tensors:
                raise ModelError(f"'{file.name}' has no tensor {target.name}.")
            at = 0
            for name in target.sources:
                rows = self._rows(name, target)
                self._places.setdefault(name, (target, at, at + rows))
                at += rows

    def names(self) -> tuple[str, ...]:
        return self._names

    def get(self, name: str) -> Array:
        """float32 where the file holds blocks, else as it is there (float16, float32; bfloat16 as float32)."""
        from gguf import dequantize

        target, first, last = self._places[name]
        tensor: Any = self._tensors[target.name]
        kind = tensor.tensor_type.name
        rows = np.asarray(tensor.data) if len(target.sources) == 1 else np.asarray(tensor.data)[first:last]
        found: Array = rows if kind in ("F16", "F32") else dequantize(rows, tensor.tensor_type)
        if target.heads is not None:
            turned = np.empty_like(found)
            turned[neighbours(len(found), target.heads)] = found
            return turned
        return np.array(found)

    def _rows(self, name: str, target: Target) -> int:
        """Rows of one of our tensors in a tensor of the file."""
        if len(target.sources) == 1:
            return int(self._tensors[target.name].data.shape[0])
        return self.decoder.shape(name.split(".", 2)[2].rsplit(".", 1)[0])[0]
