"""Quantized weights come back from disk as they were, and damage is found."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import need, random_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import missing
from lowbit.errors import ModelError
from lowbit.llm.decoder import Weights
from lowbit.llm.folder import SourceFolder
from lowbit.llm.levels import pack_levels, packed_width, unpack_levels
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.mapped import MappedFile
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.table import Table, read_note, read_tensor, write_tensors

if importlib.util.find_spec("torch") is None:
    missing("torch")


@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_levels_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    packed = pack_levels(levels, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    np.testing.assert_array_equal(unpack_levels(packed, columns, bits), levels)


def test_bytes_of_packed_levels() -> None:
    assert pack_levels(np.array([[1, 2, 3, 4, 5, 6, 7, 15]], np.uint8), 4).tolist() == [[0x21, 0x43, 0x65, 0xF7]]
    assert pack_levels(np.array([[1, 2, 3]], np.uint8), 2).tolist() == [[0b111001, 0]]
    assert pack_levels(np.array([[7, 0, 4]], np.uint8), 3).tolist() == [[0b00000111, 0b1, 0]]  # 100 000 111: nine bits over two bytes
    with pytest.raises(ValueError, match="level 8 does not fit 3 bits"):
        pack_levels(np.array([[8]], np.uint8), 3)
    with pytest.raises(ModelError, match="9 levels of 4 bits are 8 bytes a row"):
        unpack_levels(np.zeros((2, 4), np.uint8), 9, 4)


def linear(random: np.random.Generator, rows: int, columns: int, grid: Grid, kept: int = 0) -> QuantizedLinear:
    groups = -(-columns // (grid.group or columns))
    return QuantizedLinear(
        random.integers(0, 2**grid.bits, (rows, columns)).astype(np.uint8),
        random.normal(size=(rows, groups)).astype(np.float16),
        None if grid.symmetric else random.integers(0, 2**grid.bits, (rows, groups)).astype(np.uint8),
        grid,
        np.sort(random.permutation(columns)[:kept]).astype(np.int32) if kept else None,
        random.normal(size=(rows, kept)).astype(np.float16) if kept else None,
    )


@settings(max_examples=40, deadline=None)
@given(
    grid=st.builds(Grid, st.sampled_from([2, 3, 4, 8]), st.sampled_from([None, 8, 32]), st.booleans()),
    rows=st.integers(1, 6),
    columns=st.integers(9, 75),
    kept=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_tensors_come_back(tmp_path_factory: pytest.TempPathFactory, grid: Grid, rows: int, columns: int, kept: int, seed: int) -> None:
    need("safetensors")
    import ml_dtypes

    folder, random = tmp_path_factory.mktemp("tensors"), np.random.default_rng(seed)
    quantized = linear(random, rows, columns, grid, kept)
    norm = random.normal(size=7).astype(ml_dtypes.bfloat16)
    write_tensors(folder, "blocks/000.safetensors", {"a.weight": quantized, "norm": norm}, {"told": {"x": 1.5}})
    entries, facts = read_note(folder / "blocks/000.safetensors")
    assert facts == {"told": {"x": 1.5}}
    file = MappedFile(folder / "blocks/000.safetensors")
    found = read_tensor(file, "a.weight", entries["a.weight"])
    assert isinstance(found, QuantizedLinear)
    assert found.grid == grid
    for each in ("levels", "scale", "zero", "columns", "kept"):
        before, after = getattr(quantized, each), getattr(found, each)
        assert (before is None) == (after is None)
        if before is not None:
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
    plain = read_tensor(file, "norm", entries["norm"])
    assert not isinstance(plain, QuantizedLinear)
    assert plain.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(plain.view(np.uint16), norm.view(np.uint16))
    again = folder / "again"
    write_tensors(again, "blocks/000.safetensors", {"a.weight": quantized, "norm": norm}, {"told": {"x": 1.5}})
    assert (again / "blocks/000.safetensors").read_bytes() == (folder / "blocks/000.safetensors").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lowbit.llm.walk import quantize_folder

    base = tmp_path_factory.mktemp("table")
    source = SourceFolder.open(random_decoder("qwen2", base / "source", dtype="bfloat16", tied=True, chat=True))
    formats = {"mlp.down": Grid(8), "blocks.1.attention.o": Grid(3, 16, symmetric=False)}
    recipe = LanguageRecipe("mixed", "rtn", Grid(4, 32), head=Grid(8, 32), formats=formats, options={"candidates": 4})
    return quantize_folder(source, recipe, None, base / "table").path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "table"))


def test_a_table_stands_for_the_model(made: Path) -> None:
    import ml_dtypes
    import torch

    from lowbit.llm.forward import Reference

    table, source = Table.open(made), SourceFolder.open(made.parent / "source")
    assert isinstance(table, Weights)
    assert (table.decoder, table.names()) == (source.decoder, tuple(sorted(source.names(), key=table.names().index)))
    assert set(table.names()) == set(source.names())
    assert table.recipe.name == "mixed"
    assert table.source == {"name": "source", "sha256": source.sha256, "size_bytes": source.size_bytes, "parameters": source.parameters}
    assert table.grid("blocks.0.mlp.down.weight") == Grid(8)
    assert table.grid("blocks.1.attention.o.weight") == Grid(3, 16, symmetric=False)
    assert table.grid("blocks.0.norm1.weight") is None
    assert table.shape("embed.weight") == (320, 64)
    bias = table.get("blocks.1.attention.k.bias")
    assert not isinstance(bias, QuantizedLinear)
    assert bias.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(bias.view(np.uint16), source.get("blocks.1.attention.k.bias").view(np.uint16))
    with torch.no_grad():
        exact, found = Reference(source).logits([5, 6, 7, 8]), Reference(table).logits([5, 6, 7, 8])
    error = float((exact - found).square().mean() / exact.square().mean())
    assert 1e-5 < error < 0.15
    assert (made / "tokenizer_config.json").is_file()
    assert json.loads((made / "config.json").read_text())["model_type"] == "qwen2"


def test_size_is_that_of_packed_weights(made: Path) -> None:
    table = Table.open(made)
    linears = [each for name in table.names() if isinstance(each := table.get(name), QuantizedLinear)]
    packed = sum(each.size_bytes for each in linears)
    assert packed < table.size_bytes < packed * 1.15 + 12000  # and headers
    rows = {name: table.shape(name) for name in table.names() if name.startswith("blocks.") and len(table.shape(name)) == 2}
    total = sum(r * c for r, c in rows.values())
    grids = [(table.grid(name), r, c) for name, (r, c) in rows.items()]
    assert table.bits_per_weight == pytest.approx(sum(grid.bits_per_weight(c) * r * c for grid, r, c in grids if grid) / total)


def test_damage_is_found_where_it_is_read(folder: Path) -> None:
    path = folder / "blocks/001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)
    table = Table.open(folder)
    table.get("blocks.0.mlp.up.weight")
    with pytest.raises(ModelError, match=r"'blocks/001.safetensors' of the table .* is not what was written"):
        table.get("blocks.1.norm1.weight")
    with pytest.raises(ModelError, match="001"):
        table.verify()


@pytest.mark.parametrize("name", ["blocks/000.safetensors", "rest.safetensors"])
def test_missing_and_shortened_files_are_found_at_once(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(ModelError, match=rf"'{name}' of the table .* has [\d,]+ bytes; [\d,]+ were written"):
        Table.open(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"'{name}' of the table .* is missing"):
        Table.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"decoder": {}}, "is damaged"),
        ({"recipe": None}, "is damaged"),
        ({"files": None}, "is damaged"),
    ],
)
def test_a_damaged_table_json_is_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    path = folder / "table.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Exception, match=said) as error:
        Table.open(folder)
    assert type(error.value).__module__ == "lowbit.errors"


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no finished table"):
        Table.open(tmp_path)
