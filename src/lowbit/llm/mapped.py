"""Safetensors files read through the page cache: a tensor is a view, so that a model larger than memory can be walked.

The safetensors library copies what it reads into numpy; the format (github.com/huggingface/safetensors, "Format") is a header
of JSON and plain rows, which numpy maps as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.types import Array

_PLAIN = {"F32": "float32", "F16": "float16", "U8": "uint8", "I32": "int32", "I64": "int64", "F64": "float64", "I8": "int8", "BOOL": "bool"}
DAMAGED = "Copy the file again; it is damaged or not complete."


class MappedFile:
    """The tensors of one safetensors file.

    Attributes:
        path: The file.
        metadata: What its writer noted, text by text.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            ModelError: the file is missing, cut short, or no safetensors file.
        """
        self.path = path
        header, self._start = _header(path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._entries: dict[str, dict[str, Any]] = header
        self._check()

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> str:
        """In the file's words: "F16", "BF16", "F32", ..."""
        return str(self._entries[name]["dtype"])

    def get(self, name: str) -> Array:
        """A tensor, read-only, mapped: its pages are the file's.

        Raises:
            KeyError: there is none of that name.
            ModelError: of a type that numpy cannot hold.
        """
        entry = self._entries[name]
        # One mapping a tensor, not one a file: what is no longer used is given back to the system.
        count, offset = math.prod(entry["shape"]), self._start + entry["data_offsets"][0]
        if not count:
            return np.zeros(entry["shape"], self._dtype(name))
        return np.memmap(self.path, self._dtype(name), "r", offset, tuple(entry["shape"])).view(np.ndarray)

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self.dtype(name)
        if kind == "BF16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        if kind not in _PLAIN:
            raise ModelError(f"'{name}' in '{self.path.name}' is stored as {kind}; float16, bfloat16 or float32 is needed.")
        return np.dtype(_PLAIN[kind])

    def _check(self) -> None:
        size = self.path.stat().st_size - self._start
        for name, entry in self._entries.items():
            try:
                first, last = entry["data_offsets"]
                inside = 0 <= first <= last <= size
                list(entry["shape"]), str(entry["dtype"])
            except (KeyError, TypeError, ValueError):
                raise ModelError(f"'{self.path.name}' has a header that is damaged at '{name}'.", DAMAGED) from None
            if not inside:
                raise ModelError(
                    f"'{self.path.name}' ends before its tensor '{name}': {size:,} bytes of tensors are there, {last:,} are needed.",
                    DAMAGED,
                )
            bits = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)
            if entry["dtype"] in {*_PLAIN, "BF16"} and last - first != math.prod(entry["shape"]) * bits:
                raise ModelError(
                    f"'{self.path.name}' gives '{name}' {last - first:,} bytes, which do not fit its shape {entry['shape']}.", DAMAGED
                )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                raise ModelError(f"'{path.name}' is no safetensors file, or is cut short in its header.", DAMAGED)
            header = json.loads(file.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"'{path.name}' has a header that cannot be read.", DAMAGED) from error
    except OSError as error:
        raise ModelError(f"'{path.name}' cannot be read: {error.strerror}.") from error
    if not isinstance(header, dict):
        raise ModelError(f"'{path.name}' is no safetensors file.", DAMAGED)
    return header, 8 + length


def file_sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
