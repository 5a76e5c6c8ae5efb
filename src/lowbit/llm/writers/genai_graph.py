"""Nodes of an ONNX decoder: products of float and quantized matrices, norms; one operator of onnxruntime's each where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder
from lowbit.llm.writers.genai_data import Blocked, Matrix, Plain, Stored, Tensors
from lowbit.types import Array

if TYPE_CHECKING:
    from onnx_ir import Value

Compute = Literal["blocks", "token", "float"]
"""What quantized layers do with their inputs: round them to 8 bit by blocks as they run, by tokens (8-bit rows only; the rest by
blocks), or leave them in floating point."""

FLOAT, INT8_BLOCKS = 1, 4  # MatMulNBits' accuracy_level
CONTRIB = "com.microsoft"


class Graph:
    """Builds one ONNX graph; everything large is a reference into the data file."""

    def __init__(self, decoder: Decoder, tensors: Tensors, data: Path, compute: Compute) -> None:
        self.decoder, self.tensors, self.compute = decoder, tensors, compute
        self._data = data
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._folded: dict[tuple[str, str], Value] = {}
        self._rounded: dict[tuple[int, str], tuple[Value, Value]] = {}

    # Values

    def node(self, op: str, inputs: Sequence[Value | None], *, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; its output, or a tuple of them."""
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes or None, domain=domain, num_outputs=outputs)
        self._nodes.append(node)
        for index, value in enumerate(node.outputs):
            value.name = f"{op.lower()}_{len(self._nodes)}_{index}"
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def small(self, array: Any, dtype: Any = None) -> Value:
        """A constant that lies in the graph itself; the same value once."""
        import onnx_ir as ir

        array = np.asarray(array, dtype)
        name = f"constant_{array.dtype.name}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()[:64]}"
        if name not in self._initializers:
            tensor = ir.tensor(array, name=name)
            self._initializers[name] = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
        return self._initializers[name]

    def stored(self, at: Stored, shape: Sequence[int] | None = None) -> Value:
        """A tensor of the data file, seen in another shape if asked for."""
        import onnx_ir as ir

        shape = tuple(shape or at.shape)
        name = at.name if shape == at.shape else f"{at.name}.{'x'.join(map(str, shape))}"
        if name not in self._initializers:
            kind = ir.DataType.from_numpy(_numpy(at.dtype))
            tensor = ir.ExternalTensor(
                self._data.name, at.offset, at.length, kind, shape=ir.Shape(shape), name=name, base_dir=self._data.parent
            )
            self._initializers[name] = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=tensor)
        return self._initializers[name]

    def float32(self, at: Stored) -> Value:
        """A tensor of the file in float32: what is stored in 16 bit is widened when the file is loaded."""
        import onnx_ir as ir

        if at.dtype == "float32":
            return self.stored(at)
        if (at.name, "float32") not in self._folded:
            self._folded[at.name, "float32"] = self.node("Cast", [self.stored(at)], to=int(ir.DataType.FLOAT))
        return self._folded[at.name, "float32"]

    def vector(self, name: str) -> Value | None:
        found = self.tensors.vectors.get(name)
        return None if found is None else self.stored(found)

    # Embedding and products

    def rows(self, matrix: Matrix, indices: Value) -> Value:
        """Rows of an embedding, float32 [B, T, W]."""
        import onnx_ir as ir

        if isinstance(matrix, Plain):
            found = self.node("Gather", [self.stored(matrix.weight), indices], axis=0)
            return found if matrix.weight.dtype == "float32" else self.node("Cast", [found], to=int(ir.DataType.FLOAT))
        if matrix.kept is not None:
            raise ModelError("An embedding with columns in 16 bit cannot be looked up by onnxruntime.")
        levels = self.stored(matrix.levels, (matrix.rows, matrix.levels.length // matrix.rows))
        inputs = [levels, indices, self.float32(matrix.scale), *([] if matrix.zero is None else [self.stored(matrix.zero)])]
        attributes = {"bits": matrix.bits, "block_size": matrix.block, "gather_axis": 0, "quantize_axis": 1}
        found = self.node("GatherBlockQuantized", inputs, domain=CONTRIB, **attributes)
        blocks = matrix.levels.shape[1]
        if blocks * matrix.block == matrix.columns:
            return found
        return self.node("Slice", [found, self.small([0], np.int64), self.small([matrix.columns], np.int64), self.small([-1], np.int64)])

    def product(self, name: str, inputs: Value) -> Value:
        """inputs [.., K] times a matrix [O, K] turned, and its bias."""
        matrix, bias = self.tensors.matrix(name), self.vector(f"{name}.bias")
        if isinstance(matrix, Blocked):
            return self._quantized(matrix, inputs, bias)
        found = self.node("FusedMatMul", [inputs, self.float32(matrix.weight)], domain=CONTRIB, transB=1)
        return found if bias is None else self.node("Add", [found, bias])

    def _quantized(self, matrix: Blocked, inputs: Value, bias: Value | None) -> Value:
        quantized = inputs
        if matrix.others is not None and self.compute != "float":
            quantized = self.node("Mul", [inputs, self.stored(matrix.others)])
        if self.compute == "token" and matrix.row_scale is not None:
            found = self._whole_rows(matrix, quantized, bias)
        elif self.compute == "float" and matrix.bits == 8:
            found = self._widened(matrix, quantized, bias)
        else:
            found = self._blocks(matrix, quantized, bias)
        if matrix.columns_kept is None or matrix.kept is None:
            return found
        picked = self.node("Gather", [inputs, self.stored(matrix.columns_kept)], axis=-1)
        return self.node("Add", [found, self.node("MatMul", [picked, self.float32(matrix.kept)])])

    def _blocks(self, matrix: Blocked, inputs: Value, bias: Value | None) -> Value:
        zero = None if matrix.zero is None else self.stored(matrix.zero)
        level = FLOAT if self.compute == "float" else INT8_BLOCKS
        operands = [inputs, self.stored(matrix.levels), self.float32(matrix.scale), zero, None, bias]
        while operands[-1] is None:
            operands.pop()
        sizes = {"K": matrix.columns, "N": matrix.rows, "bits": matrix.bits, "block_size": matrix.block}
        return self.node("MatMulNBits", operands, domain=CONTRIB, accuracy_level=level, **sizes)

    def _whole_rows(self, matrix: Blocked, inputs: Value, bias: Value | None) -> Value:
        """Integer products of whole rows: inputs in 8 bit with a scale a token, weights with a scale a row."""
        assert matrix.row_scale is not None
        rounded, scale = self._token_rounded(inputs)
        levels = self.node("Transpose", [self._row_levels(matrix)], perm=[1, 0])
        operands = [rounded, levels, self.small(1, np.float32), self.float32(matrix.row_scale), self.small(128, np.uint8)]
        found = self.node("Mul", [self.node("MatMulIntegerToFloat", operands, domain=CONTRIB), scale])
        return found if bias is None else self.node("Add", [found, bias])

    def _token_rounded(self, inputs: Value) -> tuple[Value, Value]:
        """uint8 around 128, and the scale [.., 1]; once for all layers that read the same."""
        key = (id(inputs), "token")
        if key not in self._rounded:
            largest = self.node("ReduceMax", [self.node("Abs", [inputs]), self.small([-1], np.int64)], keepdims=1)
            scale = self.node("Mul", [self.node("Max", [largest, self.small(1e-12, np.float32)]), self.small(1 / 127, np.float32)])
            steps = self.node("Div", [inputs, scale])
            rounded = self.node("QuantizeLinear", [steps, self.small(1, np.float32), self.small(128, np.uint8)])
            self._rounded[key] = rounded, scale
        return self._rounded[key]

    def _row_levels(self, matrix: Blocked) -> Value:
        """Levels [O, K] as int8 around zero, made when the file is loaded: the processor's integer products want unsigned times signed."""
        import onnx_ir as ir

        filled = matrix.levels.shape[1] * matrix.block
        # A level minus 128 is the level with its highest bit turned over, read as int8 (Cast keeps the lower bits).
        turned = self.node("BitwiseXor", [self.stored(matrix.levels, (matrix.rows, filled)), self.small(128, np.uint8)])
        return self._unfilled(matrix, self.node("Cast", [turned], to=int(ir.DataType.INT8)))

    def _unfilled(self, matrix: Blocked, rows: Value) -> Value:
        """Rows without what fills up the last block."""
        if matrix.levels.shape[1] * matrix.block == matrix.columns:
            return rows
        return self.node("Slice", [rows, self.small([0], np.int64), self.small([matrix.columns], np.int64), self.small([1], np.int64)])

    def _widened(self, matrix: Blocked, inputs: Value, bias: Value | None) -> Value:
        """In floating point throughout: 8-bit weights are widened when the file is loaded (MatMulNBits would widen them at each call)."""
        import onnx_ir as ir

        if matrix.row_scale is not None:
            wide = self.node("Cast", [self._row_levels(matrix)], to=int(ir.DataType.FLOAT))
            found = self.node("FusedMatMul", [inputs, wide], domain=CONTRIB, transB=1)
            found = self.node("Mul", [found, self.float32(matrix.row_scale)])
        else:
            found = self.node("FusedMatMul", [inputs, self._dequantized(matrix)], domain=CONTRIB, transB=1)
        return found if bias is None else self.node("Add", [found, bias])

    def _dequantized(self, matrix: Blocked) -> Value:
        """8-bit weights [O, K] in float32, made when the file is loaded."""
        import onnx_ir as ir

        blocks = matrix.levels.shape[1]
        levels = self.node("Cast", [self.stored(matrix.levels)], to=int(ir.DataType.FLOAT))
        if matrix.zero is None:
            middle = self.small(128, np.float32)
        else:
            middle = self.node("Cast", [self.stored(matrix.zero, (matrix.rows, blocks, 1))], to=int(ir.DataType.FLOAT))
        scale = self.node("Unsqueeze", [self.float32(matrix.scale), self.small([2], np.int64)])
        wide = self.node("Mul", [self.node("Sub", [levels, middle]), scale])
        return self._unfilled(matrix, self.node("Reshape", [wide, self.small([matrix.rows, blocks * matrix.block], np.int64)]))

    # Norms and attention

    def norm(self, name: str, hidden: Value, delta: Value | None) -> tuple[Value, Value]:
        """The norm of hidden + delta, and that sum."""
        rms, epsilon = self.decoder.norm == "rms", self.decoder.epsilon
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        if delta is None:
            if rms:
                return self.node("SimplifiedLayerNormalization", [hidden, weight], axis=-1, stash_type=1, epsilon=epsilon), hidden
            return self.node("LayerNormalization", [hidden, weight, *([] if bias is None else [bias])], axis=-1, epsilon=epsilon), hidden
        op = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
        operands = [hidden, delta, weight, *([] if rms or bias is None else [bias])]
        normed, mean, deviation, total = self.node(op, operands, domain=CONTRIB, outputs=4, epsilon=epsilon)
        mean.name = deviation.name = ""  # not wanted
        return normed, total

    def head_norm(self, name: str, states: Value, heads: int) -> Value:
        """Each head [.., heads * size] normalised by itself."""
        size = self.decoder.head_size
        apart = self.node("Reshape", [states, self.small([0, 0, heads, size], np.int64)])
        normed = self.node("SimplifiedLayerNormalization", [apart, self.vector(name)], axis=-1, stash_type=1, epsilon=self.decoder.epsilon)
        return self.node("Reshape", [normed, self.small([0, 0, heads * size], np.int64)])

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> Any:
        import onnx_ir as ir

        opsets = {"": 21, CONTRIB: 1}
        initializers = [value for name, value in self._initializers.items() if value.uses() or name in {each.name for each in inputs}]
        graph = ir.Graph(inputs, outputs, nodes=self._nodes, initializers=initializers, opset_imports=opsets, name="decoder")
        return ir.Model(graph, ir_version=10, producer_name="lowbit")

    def default(self, value: Value, array: Array) -> None:
        """What an input is where it is not given."""
        import onnx_ir as ir

        value.const_value = ir.tensor(array, name=value.name)
        self._initializers[str(value.name)] = value


def _numpy(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
