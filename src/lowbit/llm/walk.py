"""Quantizes a decoder block by block: memory holds one block and the calibration text's hidden states, never the model.

    read block i from the source → method → write blocks/i → push the text's hidden states through block i → next

A block's file is written whole or not at all, so the same call after an interruption goes on at the first that is missing;
what lies between (hidden states) is computed again, bit by bit the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowbit.errors import ModelError, UsageError, unknown
from lowbit.llm.decoder import Decoder, Weights, linear_name
from lowbit.llm.folder import COPIED, SourceFolder
from lowbit.llm.forward import Block, Reference, block_names, to_tensor
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.mapped import MappedFile
from lowbit.llm.methods.base import FINISH, METHODS, BlockProblem, QuantizedBlock, calibrates
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.spool import MEMORY_BYTES, advance, spooled
from lowbit.llm.table import REST, TABLE, Table, Tensor, block_file, described, read_note, read_tensor, write_json, write_tensors
from lowbit.llm.unfinished import BEGUN, CHANGED, CHANGING, claimed, full_disk, need_room, put_in_place
from lowbit.types import Array

VERSION = 1
"""Of the walk and its methods: a table that an older one began is not gone on with."""

HEAD_ROWS = 4096
"""Rows of an embedding or head that are quantized at once."""

Progress = Callable[[int, int], None]
"""Blocks that are finished, and all of them."""


def quantize_folder(
    source: SourceFolder,
    recipe: LanguageRecipe,
    calibration: Array | None,
    out: Path,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
    force: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Table:
    """Makes the quantized weights of a model.

    Args:
        source: The model.
        recipe: Bits, groups, method.
        calibration: Tokens int [N, T] (lowbit.llm.tokens, `TextTokens.windows`); None where the recipe does not calibrate.
        out: Folder of the table; what an interrupted same call left there is gone on with, a finished table is opened.
        progress: Is told of each finished block.
        threads: Of the arithmetic; None: torch's own.
        force: Replaces the table of another call.
        memory_bytes: Hidden states beyond this lie in a file of `out`.

    Returns:
        The finished table.

    Raises:
        UsageError: the recipe keeps the weights, needs calibration text, or `out` has the table of another call.
        ModelError: a weight is NaN or infinite, or a layer cannot be quantized so.
        Interrupted: the disk is full; the same call resumes.
    """
    _check(source, recipe, calibration)
    tokens = np.ascontiguousarray(calibration, np.int32) if calibration is not None and calibrates(recipe) else None
    digest = _digest(source, recipe, tokens)
    if claimed(out, digest, force):
        return Table.open(out)
    walk = _Walk(source, recipe, tokens, out, digest, memory_bytes, progress)
    with _threads(threads), full_disk(out):
        return walk.run()


class _Walk:
    def __init__(
        self,
        source: SourceFolder,
        recipe: LanguageRecipe,
        tokens: Array | None,
        out: Path,
        digest: str,
        memory_bytes: int,
        progress: Progress | None,
    ) -> None:
        self.source, self.recipe, self.tokens, self.out = source, recipe, tokens, out
        self.digest, self.memory_bytes, self.progress = digest, memory_bytes, progress
        self.decoder = source.decoder
        self.files = [*(block_file(index) for index in range(self.decoder.layers)), REST]

    def run(self) -> Table:
        for name in COPIED:
            if (self.source.path / name).is_file():
                shutil.copyfile(self.source.path / name, self.out / name)
        if not (self.out / CHANGED).is_dir():
            self._rest()
            self._blocks()
            self._finish()
        put_in_place(self.out)
        write_json(self.out / TABLE, self._described())
        (self.out / BEGUN).unlink()
        return Table.open(self.out)

    def _blocks(self) -> None:
        """All that are missing; the text runs through the others once more."""
        done = [(self.out / name).is_file() for name in self.files[:-1]]
        if all(done):
            return
        with ExitStack() as stack:
            exact, reached = self._hidden(stack)
            last = max(index for index, each in enumerate(done) if not each)
            for index in range(last + 1):
                if not done[index]:
                    need_room(self.out, _block_bytes(self.source, self.recipe, index))
                    self._block(index, exact, reached if index or self.recipe.head is not None else None)
                if exact is not None and reached is not None and index < last:
                    advance(Block.read(self.source, index).run, exact)
                    advance(Block.read(_Finished(self, index), index).run, reached)
                if self.progress is not None:
                    self.progress(index + 1, self.decoder.layers)

    def _hidden(self, stack: ExitStack) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What the first block is fed, by the model and by the quantized model: the same, unless the embedding is quantized."""
        if self.tokens is None:
            return None, None
        n, length = self.tokens.shape
        shape = (n, length, self.decoder.width)
        need_room(self.out, 0 if 8 * n * length * self.decoder.width <= self.memory_bytes else 8 * n * length * self.decoder.width)
        exact, reached = (stack.enter_context(spooled(self.out, shape, self.memory_bytes // 2)) for _ in range(2))
        plain, quantized = Reference(self.source, keep=False), Reference(_Finished(self, None), keep=False)
        for row, ids in enumerate(self.tokens):
            exact[row], reached[row] = plain.embed(ids[None])[0], quantized.embed(ids[None])[0]
        return exact, reached

    def _block(self, index: int, exact: torch.Tensor | None, reached: torch.Tensor | None) -> None:
        block = Block.read(self.source, index)
        for name, tensor in (*block.weights.items(), *block.floats.items()):
            _check_finite(f"blocks.{index}.{name}", tensor)
        stored = self.source.get(f"blocks.{index}.norm1.weight").dtype.name
        problem = BlockProblem(index, self.decoder, block, exact, reached, self.recipe, stored)
        result = METHODS[self.recipe.method](problem)
        del block, problem
        self._write(self.out, index, result, {name: self.source.get(name) for name in block_names(self.source, index)})

    def _write(self, folder: Path, index: int, result: QuantizedBlock, before: Mapping[str, Tensor]) -> None:
        prefix = f"blocks.{index}."
        changed: dict[str, Tensor] = {linear_name(index, role): linear for role, linear in result.linears.items()}
        changed.update({prefix + name: array for name, array in result.floats.items()})
        for name, tensor in changed.items():
            if name not in before and name not in _biases(self.decoder, index):
                raise ModelError(f"The method '{self.recipe.method}' made '{name}', which the model does not have.")
            scale = tensor.scale if isinstance(tensor, QuantizedLinear) else tensor
            if not np.isfinite(scale.astype(np.float32)).all():
                raise ModelError(f"'{name}' does not fit 16 bit when quantized by '{self.recipe.method}': a scale is infinite.")
        facts = {role: dict(each) for role, each in result.facts.items()}
        write_tensors(folder, block_file(index), {**before, **changed}, {f"blocks.{index}": facts} if facts else {})

    def _rest(self) -> None:
        """Embedding, positions, last norm and head, quantized where the recipe says so."""
        if (self.out / REST).is_file():
            return
        tensors: dict[str, Tensor] = {}
        for name in self.source.names():
            if name.startswith("blocks."):
                continue
            tensor = self.source.get(name)
            for start in range(0, len(tensor), HEAD_ROWS):
                _check_finite(name, to_tensor(tensor[start : start + HEAD_ROWS]))
            head = self.recipe.head if name in ("embed.weight", "head.weight") else None
            tensors[name] = tensor if head is None else _by_rows(tensor, head)
        need_room(self.out, sum(_tensor_bytes(each) for each in tensors.values()))
        write_tensors(self.out, REST, tensors)

    def _finish(self) -> None:
        """The method's last stage over all blocks: first aside, so that an interruption leaves no table that is half changed."""
        if self.recipe.method not in FINISH:
            return
        shutil.rmtree(self.out / CHANGING, ignore_errors=True)
        (self.out / CHANGING).mkdir()
        table = Table(self.out, self._described())
        tokens = self.tokens if self.tokens is not None else np.zeros((0, 0), np.int32)
        for index, changed in FINISH[self.recipe.method](self.source, table, tokens, self.recipe):
            need_room(self.out, _block_bytes(self.source, self.recipe, index))
            self._write(self.out / CHANGING, index, changed, {name: table.get(name) for name in block_names(table, index)})
        (self.out / CHANGING).rename(self.out / CHANGED)

    def _described(self) -> dict[str, Any]:
        return described(self.out, self._facts(), self.files)

    def _facts(self) -> dict[str, Any]:
        from dataclasses import asdict

        source, tokens = self.source, self.tokens
        return {
            "digest": self.digest,
            "decoder": asdict(self.decoder),
            "recipe": self.recipe.to_yaml(),
            "source": {"name": source.path.name, "sha256": source.sha256, "size_bytes": source.size_bytes, "parameters": source.parameters},
            "calibration": None
            if tokens is None
            else {"sha256": _tokens_sha256(tokens), "windows": len(tokens), "length": tokens.shape[1]},
        }


class _Finished:
    """The blocks that are done and the rest, before there is a table: a `Weights`."""

    def __init__(self, walk: _Walk, index: int | None) -> None:
        self.decoder, self.path, self.recipe = walk.decoder, walk.out, walk.recipe
        file = walk.out / (REST if index is None else block_file(index))
        self._entries, _ = read_note(file)
        self._file = MappedFile(file)

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def get(self, name: str) -> Tensor:
        return read_tensor(self._file, name, self._entries[name])


def _by_rows(tensor: Array, grid: Grid) -> QuantizedLinear:
    """An embedding or head on its grid, some rows at a time: float32 of all would be the largest thing in memory."""
    from lowbit.llm.methods.grids import searched

    parts = []
    for start in range(0, len(tensor), HEAD_ROWS):
        weights = to_tensor(tensor[start : start + HEAD_ROWS])
        scales = searched(weights, grid)
        parts.append(scales.packed(scales.nearest(weights)))
    zero = None if parts[0].zero is None else np.concatenate([each.zero for each in parts if each.zero is not None])
    return QuantizedLinear(np.concatenate([each.levels for each in parts]), np.concatenate([each.scale for each in parts]), zero, grid)


def _check(source: SourceFolder, recipe: LanguageRecipe, calibration: Array | None) -> None:
    if recipe.method in ("none", "llamacpp"):
        raise UsageError(f"The recipe '{recipe.name}' makes no table: its method is '{recipe.method}'.")
    if recipe.method not in METHODS:
        raise unknown("method", recipe.method, METHODS)
    if not calibrates(recipe):
        return
    if calibration is None or calibration.ndim != 2 or not calibration.size:
        found = "none" if calibration is None else f"the shape {list(calibration.shape)}"
        raise UsageError(f"The recipe '{recipe.name}' calibrates: it needs tokens [N, T], and was given {found}.", "Give calibration text.")
    if calibration.shape[1] > source.decoder.positions:
        raise UsageError(f"Windows of {calibration.shape[1]:,} tokens are longer than the model's {source.decoder.positions:,} positions.")


def _digest(source: SourceFolder, recipe: LanguageRecipe, tokens: Array | None) -> str:
    calibration = None if tokens is None else _tokens_sha256(tokens)
    raw = json.dumps({"version": VERSION, "source": source.sha256, "recipe": recipe.to_yaml(), "calibration": calibration})
    return hashlib.sha256(raw.encode()).hexdigest()


def _tokens_sha256(tokens: Array) -> str:
    return hashlib.sha256(f"{tokens.shape}".encode() + np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _block_bytes(source: Weights, recipe: LanguageRecipe, index: int) -> int:
    """About what a block's file takes."""
    total = 0.0
    for name in block_names(source, index):
        role = name.removeprefix(f"blocks.{index}.").removesuffix(".weight")
        grid = recipe.grid_of(index, role) if role in source.decoder.roles else None
        tensor = source.get(name)
        assert not isinstance(tensor, QuantizedLinear)
        total += tensor.nbytes if grid is None else tensor.size * grid.bits_per_weight(tensor.shape[1]) / 8
    return int(total * 1.05)


def _tensor_bytes(tensor: Tensor) -> int:
    return tensor.size_bytes if isinstance(tensor, QuantizedLinear) else tensor.nbytes


def _biases(decoder: Decoder, index: int) -> set[str]:
    """Biases that a method may add where the model has none."""
    return {f"blocks.{index}.{role}.bias" for role in decoder.roles}


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ModelError(f"'{name}' has NaN or infinite values.", "The weights are damaged: copy or train them again.")
