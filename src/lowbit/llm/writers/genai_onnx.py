"""A decoder as ONNX for onnxruntime-genai: quantized layers as MatMulNBits, attention as GroupQueryAttention with its cache outside.

    model.onnx         computes as fast as it can: quantized layers round their inputs to 8 bit as they run
    model.float.onnx   the same weights, inputs left in floating point   (quantized tables only)
    model.token.onnx   the same weights, inputs in 8 bit with a scale a token   (8-bit weights with a scale a row)
    model.onnx.data    the tensors; all graphs read this file
    genai_config.json  what onnxruntime-genai wants to know; config.json and the tokenizer's files beside it

What the source has in 16 bit is stored in 16 bit and widened when the file is loaded: the CPU has no products in 16 bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.engines.base import ArtifactFormat
from lowbit.llm.folder import COPIED
from lowbit.llm.linear import Grid
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.rope import frequencies
from lowbit.llm.writers.genai_config import config_text, needs_positions
from lowbit.llm.writers.genai_data import Blocked, DataFile, Tensors, check_grid
from lowbit.llm.writers.genai_graph import CONTRIB, Compute, Graph
from lowbit.quiet import no_telemetry
from lowbit.types import Array

if TYPE_CHECKING:
    from onnx_ir import Value

FORMAT: ArtifactFormat = "onnx"
MAIN, DATA = "model.onnx", "model.onnx.data"
VARIANTS: dict[Compute, str] = {"blocks": MAIN, "float": "model.float.onnx", "token": "model.token.onnx"}
FROM = "logits_from"
"""Input of the graphs: the first position whose logits are told. Left out: the last one's only, as an answer needs."""


def check(decoder: Decoder, recipe: LanguageRecipe | None = None) -> None:
    """
    Raises:
        ModelError: what the operators do not compute.
        UsageError: groups that they do not hold.
    """
    if decoder.window is not None and decoder.window < 1:
        raise ModelError(f"A token sees {decoder.window} before it; at least one is needed.")
    if recipe is None:
        return
    for block in range(decoder.layers):
        for role in decoder.roles:
            if (grid := recipe.grid_of(block, role)) is not None:
                check_grid(f"blocks.{block}.{role}", grid, decoder.shape(role)[1])
    if recipe.head is not None:
        check_grid("head", recipe.head, decoder.width)


def write(weights: Weights, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes the artifact, tensor by tensor.

    Args:
        weights: A Hugging Face folder or a quantized table.
        folder: Made if absent; what an earlier call wrote is replaced.
        progress: Is told blocks done and blocks in all.

    Returns:
        model.onnx.

    Raises:
        ModelError, UsageError: as `check`.
        OSError: the disk is full or cannot be written.
    """
    check(weights.decoder, getattr(weights, "recipe", None))
    _check_grids(weights)
    no_telemetry()
    import onnx_ir as ir

    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with DataFile(partial / DATA) as data:
            tensors = Tensors(weights, data, progress)
            caches = _rotations(weights.decoder, data)
        for compute in _computes(tensors, str(getattr(getattr(weights, "recipe", None), "activations", "float"))):
            name = MAIN if compute[1] else VARIANTS[compute[0]]
            ir.save(build(weights.decoder, tensors, caches, partial / DATA, compute[0]), partial / name)
        (partial / "genai_config.json").write_text(config_text(weights.decoder, context(weights.decoder), MAIN), encoding="utf-8")
        for name in COPIED:
            if (weights.path / name).is_file():
                shutil.copyfile(weights.path / name, partial / name)
        for each in VARIANTS.values():
            (folder / each).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == MAIN):  # the main file last: where it is, all is
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
    return folder / MAIN


def _check_grids(weights: Weights) -> None:
    """What no recipe tells: a table made by hand."""
    grid_of: Callable[[str], Grid | None] | None = getattr(weights, "grid", None)
    if grid_of is None:
        return
    for name in weights.names():
        if (grid := grid_of(name)) is not None:
            columns = weights.shape(name)[1]  # type: ignore[attr-defined]  # a table has both
            check_grid(name.removesuffix(".weight"), grid, columns)


def _computes(tensors: Tensors, activations: str) -> list[tuple[Compute, bool]]:
    """The graphs to write, and which of them is the main one."""
    quantized = [each for each in tensors.matrices.values() if isinstance(each, Blocked)]
    if not quantized:
        return [("float", True)]
    main: Compute = "token" if activations == "int8-token" else "blocks"
    others: list[Compute] = ["float"]
    if main == "blocks" and any(each.row_scale is not None for each in quantized):
        others.append("token")
    return [(main, True), *((other, False) for other in others)]


def context(decoder: Decoder) -> int:
    """Tokens that the file's positions reach: with longrope those that its short factors are for."""
    scaling = None if decoder.rope is None else decoder.rope.scaling
    if scaling is not None and scaling.get("rope_type") == "longrope":
        return min(decoder.positions, int(scaling["original_max_position_embeddings"]))
    return decoder.positions


def _rotations(decoder: Decoder, data: DataFile) -> tuple[Any, Any] | None:
    """Cosines and sines [positions, size / 2] of rotary positions, computed in float32 as transformers does."""
    if decoder.rope is None:
        return None
    speed, factor = frequencies(decoder.rope, decoder.positions, context(decoder))
    angles = np.arange(context(decoder), dtype=np.float32)[:, None] * speed.astype(np.float32)
    return data.add("cos_cache", _times(np.cos(angles), factor)), data.add("sin_cache", _times(np.sin(angles), factor))


def _times(values: Array, factor: float) -> Array:
    return (values * np.float32(factor)).astype(np.float32)


def build(decoder: Decoder, tensors: Tensors, caches: tuple[Any, Any] | None, data: Path, compute: Compute) -> Any:
    """One graph over tensors that were written: an onnx_ir.Model."""
    import onnx_ir as ir

    graph = Graph(decoder, tensors, data, compute)
    int64, float32 = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.FLOAT)
    ids = ir.Value(name="input_ids", type=int64, shape=ir.Shape(["batch", "tokens"]))
    mask = ir.Value(name="attention_mask", type=int64, shape=ir.Shape(["batch", "total"]))
    start = ir.Value(name=FROM, type=int64, shape=ir.Shape([1]))
    graph.default(start, np.array([-1], np.int64))
    inputs, outputs = [ids, mask], []
    hidden: Value = graph.rows(tensors.matrix("embed"), ids)
    positions = ir.Value(name="position_ids", type=int64, shape=ir.Shape(["batch", "tokens"]))
    if needs_positions(decoder):
        inputs.append(positions)
    if decoder.rope is None:
        hidden = graph.node("Add", [hidden, graph.rows(tensors.matrix("positions"), positions)])
    attention = _Attention(graph, mask, positions, caches)
    delta: Value | None = None
    for block in range(decoder.layers):
        past, present = _cache(decoder, block, float32)
        inputs += past
        outputs += present
        hidden, delta = _block(graph, block, hidden, delta, attention, past, present)
    last, _ = graph.norm("norm", hidden, delta)
    last = graph.node("Slice", [last, start, graph.small([2**62], np.int64), graph.small([1], np.int64)])
    logits = graph.product("head" if not decoder.tied else "embed", last)
    if decoder.tied and (bias := graph.vector("head.bias")) is not None:
        logits = graph.node("Add", [logits, bias])
    logits.name, logits.type, logits.shape = "logits", float32, ir.Shape(["batch", 1, decoder.vocabulary])
    return graph.model([*inputs, start], [logits, *outputs])


def _cache(decoder: Decoder, block: int, kind: Any) -> tuple[list[Value], list[Value]]:
    import onnx_ir as ir

    def value(name: str, length: str) -> Value:
        return ir.Value(name=name, type=kind, shape=ir.Shape(["batch", decoder.kv_heads, length, decoder.head_size]))

    past = [value(f"past_key_values.{block}.{each}", "past") for each in ("key", "value")]
    return past, [value(f"present.{block}.{each}", "total") for each in ("key", "value")]


def _block(
    graph: Graph, block: int, hidden: Value, delta: Value | None, attention: _Attention, past: list[Value], present: list[Value]
) -> tuple[Value, Value]:
    """The sum before this block's last part, and that part: the next norm adds them."""
    name = f"blocks.{block}"
    normed, hidden = graph.norm(f"{name}.norm1", hidden, delta)
    attended = graph.product(f"{name}.attention.o", attention(name, normed, past, present))
    if graph.decoder.parallel:
        return hidden, graph.node("Add", [attended, _mlp(graph, name, normed)])
    normed, hidden = graph.norm(f"{name}.norm2", hidden, attended)
    return hidden, _mlp(graph, name, normed)


def _mlp(graph: Graph, name: str, inputs: Value) -> Value:
    decoder = graph.decoder
    parts = [f"{name}.mlp.gate", f"{name}.mlp.up"]
    if not decoder.gated:
        return graph.product(f"{name}.mlp.down", activated(graph, graph.product(f"{name}.mlp.up", inputs)))
    if graph.tensors.joined(parts):
        gate, up = graph.node("Split", [graph.product("+".join(parts), inputs)], outputs=2, axis=-1, num_outputs=2)
    else:
        gate, up = (graph.product(part, inputs) for part in parts)
    return graph.product(f"{name}.mlp.down", graph.node("Mul", [activated(graph, gate), up]))


def activated(graph: Graph, x: Value) -> Value:
    """The MLP's activation."""
    if graph.decoder.activation == "silu":
        return graph.node("QuickGelu", [x], domain=CONTRIB, alpha=1.0)
    return graph.node("Gelu", [x], approximate="tanh" if graph.decoder.activation == "gelu_tanh" else "none")


class _Attention:
    """GroupQueryAttention for each block; what all blocks share is made once."""

    def __init__(self, graph: Graph, mask: Value, positions: Value, caches: tuple[Any, Any] | None) -> None:
        import onnx_ir as ir

        self._graph, self._caches, self._positions = graph, caches, positions
        self._inside = caches is not None and not needs_positions(graph.decoder)
        int32 = int(ir.DataType.INT32)
        count = graph.node("ReduceSum", [mask, graph.small([1], np.int64)], keepdims=0)
        self._before = graph.node("Cast", [graph.node("Sub", [count, graph.small([1], np.int64)])], to=int32)
        total = graph.node("Gather", [graph.node("Shape", [mask]), graph.small(1, np.int64)], axis=0)
        self._total = graph.node("Cast", [total], to=int32)

    def __call__(self, block: str, inputs: Value, past: list[Value], present: list[Value]) -> Value:
        graph, decoder = self._graph, self._graph.decoder
        q, k, v = self._states(block, inputs)
        turned = [graph.stored(each) for each in self._caches] if self._caches is not None and self._inside else []
        operands = [q, k, v, *past, self._before, self._total, *turned]
        attributes: dict[str, Any] = {"num_heads": decoder.heads, "kv_num_heads": decoder.kv_heads}
        attributes |= {"do_rotary": int(self._inside), "scale": decoder.head_size**-0.5}
        if decoder.window is not None:
            attributes["local_window_size"] = decoder.window
        found, key, value = graph.node("GroupQueryAttention", operands, domain=CONTRIB, outputs=3, **attributes)
        for made, declared in zip((key, value), present, strict=True):
            made.name, made.type, made.shape = declared.name, declared.type, declared.shape
        present[:] = [key, value]
        return found

    def _states(self, block: str, inputs: Value) -> tuple[Value, Value | None, Value | None]:
        """Queries, keys and values [B, T, heads * size]; all in the first where they stay together."""
        graph, decoder = self._graph, self._graph.decoder
        parts = [f"{block}.attention.{each}" for each in "qkv"]
        if graph.tensors.joined(parts):
            found = graph.product("+".join(parts), inputs)
            if not decoder.qk_norm and (self._inside or self._caches is None):
                return found, None, None
            sizes = graph.small([decoder.shape(f"attention.{each}")[0] for each in "qkv"], np.int64)
            q, k, v = graph.node("Split", [found, sizes], outputs=3, axis=-1)
        else:
            q, k, v = (graph.product(part, inputs) for part in parts)
        if decoder.qk_norm:
            q = graph.head_norm(f"{block}.attention.q_norm.weight", q, decoder.heads)
            k = graph.head_norm(f"{block}.attention.k_norm.weight", k, decoder.kv_heads)
        if self._caches is not None and not self._inside:
            q, k = self._turned(q, decoder.heads), self._turned(k, decoder.kv_heads)
        return q, k, v

    def _turned(self, states: Value, heads: int) -> Value:
        graph, decoder = self._graph, self._graph.decoder
        assert self._caches is not None
        assert decoder.rope is not None
        operands = [states, self._positions, *(graph.stored(each) for each in self._caches)]
        return graph.node("RotaryEmbedding", operands, domain=CONTRIB, num_heads=heads, rotary_embedding_dim=decoder.rope.size)
