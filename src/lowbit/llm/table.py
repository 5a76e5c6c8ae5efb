"""A decoder's quantized weights on disk, in no engine's format: every writer starts from here.

    table.json                  what it is of, by which recipe, and the digest of each file
    blocks/000.safetensors ...  a file a block: finished ones survive an interruption
    rest.safetensors            embedding, last norm, head
    config.json, tokenizer.json, ...   as the source has them

A quantized tensor NAME is NAME.levels (packed, lowbit.llm.levels), NAME.scale, NAME.zero where the grid is not symmetric, and
NAME.columns and NAME.kept where inputs are kept in 16 bit; everything else is as in the source.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder, Rope
from lowbit.llm.folder import read_json
from lowbit.llm.levels import pack_levels, unpack_levels
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.mapped import MappedFile, file_sha256
from lowbit.llm.recipe import LanguageRecipe
from lowbit.types import Array

SCHEMA = 1
TABLE = "table.json"
REST = "rest.safetensors"
_PARTS = ("levels", "scale", "zero", "columns", "kept")
_AGAIN = "Delete the folder and quantize again; the source is not changed."

Tensor = Array | QuantizedLinear


def block_file(index: int) -> str:
    """Name of a block's file within the table's folder."""
    return f"blocks/{index:03d}.safetensors"


class Table:
    """Quantized weights, read one tensor at a time; a `Weights` (lowbit.llm.decoder).

    Attributes:
        decoder: The architecture.
        path: The folder, with the source's config.json and tokenizer.
        recipe: What they were made by.
        source: "name" and "sha256" of what they were made from, its "size_bytes" and "parameters".
        facts: What the methods had to tell, block by block and role by role.
    """

    decoder: Decoder
    path: Path

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        self.decoder = _decoder(raw["decoder"])
        self.recipe = LanguageRecipe.from_yaml(raw["recipe"])
        self.source: dict[str, Any] = dict(raw["source"])
        self.calibration: dict[str, Any] | None = raw.get("calibration")
        self.facts: dict[str, dict[str, dict[str, float]]] = dict(raw.get("facts") or {})
        self.digest: str = raw["digest"]
        self._shards: dict[str, dict[str, Any]] = dict(raw["files"])
        self._tensors: dict[str, dict[str, Any]] = dict(raw["tensors"])
        self._open: dict[str, MappedFile] = {}

    @classmethod
    def open(cls, path: Path | str) -> Table:
        """Reads table.json; the weights' files are checked when they are first read.

        Raises:
            ModelError: it is no table, not finished, of a newer lowbit, or a file is missing or of another size.
        """
        path = Path(path)
        if not (path / TABLE).is_file():
            raise ModelError(
                f"'{path}' has no finished table of quantized weights ({TABLE}).",
                "Quantize the model; the same call resumes what was begun.",
            )
        raw = read_json(path, TABLE)
        if raw.get("schema") != SCHEMA:
            raise ModelError(
                f"'{path / TABLE}' has schema {raw.get('schema')!r}; this version reads {SCHEMA}.", "Quantize again with this version."
            )
        try:
            table = cls(path, raw)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"'{path / TABLE}' is damaged: {type(error).__name__} {error}.", _AGAIN) from error
        for name, facts in table._shards.items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != facts["size_bytes"]:
                what = "is missing" if found is None else f"has {found:,} bytes; {facts['size_bytes']:,} were written"
                raise ModelError(f"'{name}' of the table '{path}' {what}.", _AGAIN)
        return table

    def names(self) -> tuple[str, ...]:
        """Of all tensors, in canonical names."""
        return tuple(self._tensors)

    def get(self, name: str) -> Tensor:
        """One tensor; levels are unpacked, all else is a view of the file.

        Raises:
            KeyError: there is none of that name.
            ModelError: its file is damaged.
        """
        entry = self._tensors[name]
        return read_tensor(self._file(entry["file"]), name, entry)

    def grid(self, name: str) -> Grid | None:
        """Of a tensor, without reading it; None where it is floating point."""
        raw = self._tensors[name].get("grid")
        return None if raw is None else Grid(**raw)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return tuple(self._tensors[name]["shape"])

    @property
    def size_bytes(self) -> int:
        """Of the weights' files."""
        return sum(int(facts["size_bytes"]) for facts in self._shards.values())

    @property
    def bits_per_weight(self) -> float:
        """Of the blocks' linear layers, with scales and zero points, on the mean."""
        bits = weights = 0.0
        for name, entry in self._tensors.items():
            if name.startswith("blocks.") and len(entry["shape"]) == 2:
                rows, columns = entry["shape"]
                each = 16.0 if entry.get("grid") is None else Grid(**entry["grid"]).bits_per_weight(columns)
                bits, weights = bits + rows * columns * each, weights + rows * columns
        return bits / weights

    def verify(self) -> None:
        """Reads every file and compares its digest.

        Raises:
            ModelError: naming the first that was changed or damaged.
        """
        for name in self._shards:
            self._file(name)

    def _file(self, name: str) -> MappedFile:
        if name not in self._open:
            if file_sha256(self.path / name) != self._shards[name]["sha256"]:
                raise ModelError(f"'{name}' of the table '{self.path}' is not what was written: it is damaged or was changed.", _AGAIN)
            self._open[name] = MappedFile(self.path / name)
        return self._open[name]


def read_tensor(file: MappedFile, name: str, entry: Mapping[str, Any]) -> Tensor:
    """A tensor of a table's file, by its entry in table.json."""
    if entry.get("grid") is None:
        return file.get(name)
    grid, (rows, columns) = Grid(**entry["grid"]), entry["shape"]
    parts = {part: file.get(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in file.names()}
    groups = parts["scale"].shape[1]
    zero = None if grid.symmetric else unpack_levels(parts["zero"], groups, grid.bits)
    levels = unpack_levels(parts["levels"], columns, grid.bits)
    assert levels.shape[0] == rows
    return QuantizedLinear(levels, parts["scale"], zero, grid, parts.get("columns"), parts.get("kept"))


def entry_of(file: str, tensor: Tensor) -> dict[str, Any]:
    """What table.json says of a tensor."""
    if isinstance(tensor, QuantizedLinear):
        return {"file": file, "shape": list(tensor.shape), "grid": asdict(tensor.grid)}
    return {"file": file, "shape": list(tensor.shape), "dtype": tensor.dtype.name}


NOTE = "lowbit"
"""Key of what a file says of itself. One key only: the library writes several in any order, and the same call makes the same bytes."""


def write_tensors(folder: Path, file: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Writes a file of a table whole or not at all: aside, flushed, then renamed. It says itself what is in it.

    Args:
        folder: The table's.
        file: Its name in table.json.
        tensors: By name.
        facts: Whatever is to be found again beside them.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from safetensors.numpy import save_file

    plain: dict[str, Array] = {}
    for name, tensor in tensors.items():
        plain.update(_parts(name, tensor))
    note = {"entries": {name: entry_of(file, tensor) for name, tensor in tensors.items()}, "facts": dict(facts or {})}
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(plain, partial, {NOTE: json.dumps(note)})
        shutil.copymode(folder, partial)  # the library writes for the user alone
        partial.chmod(partial.stat().st_mode & 0o666)
        _flush(partial)
    except Exception as error:  # the library has errors of its own for a full disk
        partial.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    partial.replace(path)


def read_note(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Entries and facts that `write_tensors` noted.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        note = json.loads(MappedFile(path).metadata[NOTE])
        return note["entries"], note["facts"]
    except (KeyError, ValueError) as error:
        raise ModelError(f"'{path}' is no file of a table.", _AGAIN) from error


def _parts(name: str, tensor: Tensor) -> dict[str, Array]:
    if not isinstance(tensor, QuantizedLinear):
        return {name: np.ascontiguousarray(tensor)}
    bits = tensor.grid.bits
    parts = {"levels": pack_levels(tensor.levels, bits), "scale": np.ascontiguousarray(tensor.scale, np.float16)}
    if tensor.zero is not None:
        parts["zero"] = pack_levels(tensor.zero, bits)
    if tensor.columns is not None and tensor.kept is not None:
        parts["columns"] = np.ascontiguousarray(tensor.columns, np.int32)
        parts["kept"] = np.ascontiguousarray(tensor.kept, np.float16)
    return {f"{name}.{part}": array for part, array in parts.items()}


def described(path: Path, facts: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """What table.json says of files that lie there.

    Args:
        path: The folder.
        facts: "decoder", "recipe", "source", "calibration", "digest".
        files: Names of the weights' files.
    """
    shards, tensors, told = {}, {}, {}
    for name in files:
        shards[name] = {"sha256": file_sha256(path / name), "size_bytes": (path / name).stat().st_size}
        entries, each = read_note(path / name)
        tensors.update(entries)
        told.update(each)
    return {"schema": SCHEMA, **facts, "files": shards, "tensors": tensors, "facts": told}


def write_json(path: Path, raw: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _decoder(raw: Mapping[str, Any]) -> Decoder:
    values = dict(raw)
    rope = values.pop("rope")
    return Decoder(**{**values, "eos": tuple(values["eos"])}, rope=None if rope is None else Rope(**rope))
