"""A decoder as one GGUF file for llama.cpp: weights that are quantized stay what they are, bit for bit, and the others keep their type.

Tensors are read twice, once for their types and once to be written, and one is in memory at a time.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import Interrupted, UsageError
from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.engines.base import ArtifactFormat
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers import gguf_names
from lowbit.llm.writers.gguf_blocks import BLOCK, Packed, block_type, pack, refuse, refuse_kept
from lowbit.llm.writers.gguf_names import ARCHITECTURES, Target, layout, neighbours, rope_factors
from lowbit.llm.writers.gguf_tokenizer import Tokenizer, read_tokenizer
from lowbit.types import Array

if TYPE_CHECKING:
    from gguf import GGUFWriter

FORMAT: ArtifactFormat = "gguf"

MAIN = "model.gguf"

Progress = Callable[[int, int], None]
"""Called with tensors written and tensors in all."""

FLOATS = {"float16": "F16", "float32": "F32", "bfloat16": "BF16"}

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "BF16": 32}
"""llama.cpp's number for a file that is mostly of a type."""


def check(decoder: Decoder, recipe: LanguageRecipe | Mapping[str, Grid] | None = None) -> None:
    """Says what the format cannot hold, before anything is computed.

    Args:
        decoder: The architecture.
        recipe: A recipe, or the grid of each linear layer ("blocks.3.mlp.down" or "embed"); None: nothing is quantized.

    Raises:
        ModelError: llama.cpp does not compute such an architecture.
        UsageError: blocks of 32 cannot hold a grid, or columns are to be kept in 16 bit.
    """
    gguf_names.refuse(decoder)
    if isinstance(recipe, LanguageRecipe):
        if recipe.outliers is not None:
            raise refuse_kept("a linear layer")
        for block in range(decoder.layers):
            for role in decoder.roles:
                if (grid := recipe.grid_of(block, role)) is not None:
                    refuse(f"blocks.{block}.{role}", grid, decoder.shape(role)[1])
        if recipe.head is not None:
            refuse("the head", recipe.head, decoder.width)
    elif recipe is not None:
        for name, grid in recipe.items():
            columns = decoder.shape(name.split(".", 2)[2])[1] if name.startswith("blocks.") else decoder.width
            refuse(name, grid, columns)


def notes(weights: Weights) -> tuple[str, ...]:
    """What is true of the file and not of the source: sentences for the report."""
    decoder = weights.decoder
    found = list(read_tokenizer(weights.path, decoder).notes)
    if gguf_names.context(decoder) < decoder.positions:
        found.append(
            f"llama.cpp's context ends at {gguf_names.context(decoder)} tokens: there the model's sliding window begins to forget."
        )
    if decoder.rope is not None and decoder.rope.scaling is not None and decoder.rope.scaling.get("rope_type") == "longrope":
        original = decoder.rope.scaling["original_max_position_embeddings"]
        found.append(f"Opened for more than {original} tokens, llama.cpp turns short texts by the long factors too; transformers does not.")
    recipe = getattr(weights, "recipe", None)
    if isinstance(recipe, LanguageRecipe) and recipe.activations == "int8-token":
        found.append("llama.cpp rounds activations to 8 bit itself, in blocks of 32 and not by token.")
    grids = [recipe.grid, *recipe.formats.values()] if isinstance(recipe, LanguageRecipe) else []
    for grid in dict.fromkeys(grid for grid in grids if grid is not None):
        if grid.group != BLOCK:
            found.append(f"Groups of {grid.group or 'whole rows'} repeat their scale in each block of {BLOCK}: exact, and a little larger.")
        if grid.bits in (2, 3):
            found.append(f"{grid.bits} bit is held in blocks of 4 bit: exact, and no smaller than int4.")
        if grid.bits == 4 and not grid.symmetric:
            found.append("Zero points go into Q4_1 where 16 bit hold their products, else into blocks of 5 bit (Q5_0): exact, and larger.")
    return tuple(found)


def write(weights: Weights, folder: Path, *, progress: Progress | None = None) -> Path:
    """Writes model.gguf.

    Args:
        weights: A Hugging Face folder (16 bit stays 16 bit) or a quantized table.
        folder: Made if absent.
        progress: Told about each tensor.

    Returns:
        The file.

    Raises:
        ModelError: llama.cpp does not compute such a model, or its tokenizer is broken.
        UsageError: the format cannot hold a tensor, or the package gguf is not installed.
        Interrupted: the disk is full; nothing half-written is left.
    """
    recipe = getattr(weights, "recipe", None)
    check(weights.decoder, recipe if isinstance(recipe, LanguageRecipe) else None)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{MAIN}.partial"
    try:
        _write(weights, partial, progress)
        return partial.replace(folder / MAIN)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Interrupted(f"The disk is full ({error.strerror}).", "Free some space; the same command resumes.") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _write(weights: Weights, path: Path, progress: Progress | None) -> None:
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise UsageError("The package gguf, which writes llama.cpp's files, is not installed.", "pip install 'lowbit[llamacpp]'") from error
    decoder = weights.decoder
    targets = layout(decoder, weights.names())
    factors = rope_factors(decoder)
    writer = GGUFWriter(path, ARCHITECTURES[decoder.family])
    try:
        types = _declare(writer, weights, targets, factors)
        _describe(writer, decoder, read_tokenizer(weights.path, decoder), types)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in factors.values():
            writer.write_tensor_data(each)
        for done, target in enumerate(targets, 1):
            kind, data = _content(weights, target)
            assert GGMLQuantizationType[kind] == types[target.name]
            writer.write_tensor_data(data)
            if progress is not None:
                progress(done, len(targets))
    finally:
        writer.close()


def _declare(writer: GGUFWriter, weights: Weights, targets: tuple[Target, ...], factors: Mapping[str, Array]) -> dict[str, Any]:
    """Tells the writer each tensor's shape and type, which come before the data; returns the types."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    types = {}
    for name, each in factors.items():
        writer.add_tensor_info(name, each.shape, each.dtype, each.nbytes)
    for target in targets:
        kind, shape = _type(weights, target)
        types[target.name] = GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[types[target.name]]
        bytes_ = int(np.prod(shape)) // block * size
        writer.add_tensor_info(target.name, shape, np.dtype(np.float32), bytes_, raw_dtype=types[target.name])
    return types


def _type(weights: Weights, target: Target) -> tuple[str, tuple[int, ...]]:
    """Type and shape of one tensor of the file."""
    if not target.sources:
        return "F32", (target.zeros,)
    parts = [weights.get(name) for name in target.sources]
    rows = sum(part.shape[0] for part in parts)
    shape = (rows, *parts[0].shape[1:])
    quantized = _quantized(target, parts)
    if quantized:
        return block_type(quantized), shape
    if target.vector:
        return "F32", shape
    kinds = {FLOATS[str(part.dtype)] for part in parts if not isinstance(part, QuantizedLinear)}
    return (kinds.pop() if len(kinds) == 1 else "F32"), shape


def _quantized(target: Target, parts: list[Array | QuantizedLinear]) -> list[QuantizedLinear]:
    """The parts, where they are quantized; empty where they are floating point.

    Raises:
        UsageError: they cannot be held.
    """
    quantized = [part for part in parts if isinstance(part, QuantizedLinear)]
    for name, part in zip(target.sources, parts, strict=True):
        if isinstance(part, QuantizedLinear):
            refuse(name.removesuffix(".weight"), part.grid, part.shape[1])
            if part.columns is not None and len(part.columns):
                raise refuse_kept(name.removesuffix(".weight"))
    if quantized and len(quantized) < len(parts):
        raise UsageError(
            f"llama.cpp holds {', '.join(target.sources)} in one tensor of one type; some of them are quantized, and some are not.",
            "Quantize all of them, or none.",
        )
    return quantized


def _content(weights: Weights, target: Target) -> tuple[str, Array]:
    """Type and bytes of one tensor of the file."""
    if not target.sources:
        return "F32", np.zeros(target.zeros, np.float32)
    parts = [weights.get(name) for name in target.sources]
    if quantized := _quantized(target, parts):
        if target.heads is not None:
            quantized = [_reordered(part, neighbours(part.shape[0], target.heads)) for part in quantized]
        packed: Packed = pack(quantized)
        return packed.type, packed.data
    kind, _ = _type(weights, target)
    floats = [np.asarray(part) for part in parts]
    joined = floats[0] if len(floats) == 1 else np.concatenate([each.astype(np.float32) if kind == "F32" else each for each in floats])
    if target.heads is not None:
        joined = joined[neighbours(len(joined), target.heads)]
    if kind == "F32":
        joined = joined.astype(np.float32)
    return kind, np.ascontiguousarray(joined.view(np.uint16) if kind == "BF16" else joined)


def _reordered(part: QuantizedLinear, order: Array) -> QuantizedLinear:
    return QuantizedLinear(part.levels[order], part.scale[order], None if part.zero is None else part.zero[order], part.grid)


def _describe(writer: GGUFWriter, decoder: Decoder, tokenizer: Tokenizer, types: Mapping[str, Any]) -> None:
    """Adds what is no tensor: the architecture's numbers, and the tokenizer."""
    writer.add_type("model")
    most = Counter(kind.name for name, kind in types.items() if name.startswith("blk.") and "norm" not in name and "bias" not in name)
    common = most.most_common(1)[0][0]
    writer.add_file_type(FILE_TYPES[common])
    writer.add_quantization_version(2)
    for key, value in gguf_names.numbers(decoder).items():
        if isinstance(value, str):
            writer.add_string(f"{writer.arch}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{writer.arch}.{key}", value)
        else:
            writer.add_float32(f"{writer.arch}.{key}", value)
    writer.add_tokenizer_model(tokenizer.model)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    if tokenizer.model != "no_vocab":
        _add_tokens(writer, tokenizer)


def _add_tokens(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    if tokenizer.pre is not None:
        writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges:
        writer.add_token_merges(tokenizer.merges)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    writer.add_add_space_prefix(tokenizer.add_space)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unknown": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for key, token in (tokenizer.ids or {}).items():
        adders[key](token)
