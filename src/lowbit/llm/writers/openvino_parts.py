"""The parts of a decoder in OpenVINO's operators, in the shapes that its CPU plugin fuses: RMS, RoPE, attention with a cache.

Paged attention (openvino-genai's continuous batching) is made of the same graph by rewriting: the batch axis becomes all tokens of
all sequences, and the mask goes away. What a mask says beyond causality must be in a form which that rewriting knows: the sliding
window's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.llm.decoder import Decoder
from lowbit.types import Array

if TYPE_CHECKING:
    from openvino import Node

HIDDEN = -65504.0
"""What a mask adds to the score of a token that is not seen; 16-bit floating point holds it."""


def ints(*values: int) -> Node:
    """A constant int64 [n]."""
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


def integer(value: int, dtype: Any = np.int64) -> Node:
    """A constant without axes."""
    from openvino import opset13 as ops

    return ops.constant(np.array(value, dtype))


def number(value: float) -> Node:
    """A float32 constant without axes."""
    from openvino import opset13 as ops

    return ops.constant(np.array(value, np.float32))


@dataclass
class Inputs:
    """What the model is fed: tokens and positions [B, T], 1 for each token that counts [B, past + T], whose cache a row continues [B]."""

    input_ids: Node
    attention_mask: Node
    position_ids: Node
    beam_idx: Node

    @classmethod
    def make(cls) -> Inputs:
        from openvino import opset13 as ops

        shapes = {"input_ids": [-1, -1], "attention_mask": [-1, -1], "position_ids": [-1, -1], "beam_idx": [-1]}
        nodes = {}
        for name, shape in shapes.items():
            node = ops.parameter(shape, np.int32 if name == "beam_idx" else np.int64, name=name)
            node.output(0).set_names({name})
            nodes[name] = node
        return cls(**nodes)

    def all(self) -> list[Node]:
        return [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]


def rms_norm(inputs: Node, weight: Node, epsilon: float) -> Node:
    """Zhang and Sennrich 2019 (arXiv 1910.07467), over the last axis."""
    from openvino import opset13 as ops

    mean = ops.reduce_mean(ops.power(inputs, number(2)), ops.constant(np.array([-1], np.int32)), True)
    inverse = ops.divide(number(1), ops.sqrt(ops.add(mean, number(epsilon))))
    return ops.multiply(weight, ops.multiply(inputs, inverse))


def layer_norm(inputs: Node, weight: Node, bias: Node | None, epsilon: float) -> Node:
    """Ba et al. 2016 (arXiv 1607.06450), over the last axis."""
    from openvino import opset13 as ops

    found = ops.multiply(ops.mvn(inputs, ops.constant(np.array([-1], np.int64)), True, epsilon, "INSIDE_SQRT"), weight)
    return found if bias is None else ops.add(found, bias)


def activated(inputs: Node, name: str) -> Node:
    """The MLP's activation function, by Decoder's word for it."""
    from openvino import opset13 as ops

    if name == "silu":
        return ops.swish(inputs)
    return ops.gelu(inputs, "ERF" if name == "gelu" else "TANH")


@dataclass
class Rotation:
    """Rotary positions of every token.

    Attributes:
        cosine, sine: Of the angles [B, 1, T, size].
        size: Leading elements of a head that are turned.
        head: Elements of a head.
    """

    cosine: Node
    sine: Node
    size: int
    head: int

    @classmethod
    def of(
        cls, positions: Node, size: int, head: int, speed: Array, factor: float, beyond: Array | None = None, longest: int | None = None
    ) -> Rotation:
        """
        Args:
            positions: int64 [B, T].
            size, head: See the class.
            speed: Radians a position [size / 2].
            factor: What cosines and sines are multiplied by.
            beyond: The speed in texts of more than `longest` tokens, where it is another.
            longest: See `beyond`.
        """
        from openvino import opset13 as ops

        radians: Node = ops.constant(speed.astype(np.float32).reshape(1, 1, -1))
        if beyond is not None and longest is not None:
            long_text = ops.greater_equal(ops.reduce_max(positions, ints(1), True), integer(longest))  # [B, 1]
            radians = ops.select(ops.unsqueeze(long_text, ints(2)), ops.constant(beyond.astype(np.float32).reshape(1, 1, -1)), radians)
        angles = ops.multiply(ops.convert(ops.unsqueeze(positions, ints(2)), "f32"), radians)
        both = ops.unsqueeze(ops.concat([angles, angles], -1), ints(1))
        cosine, sine = ops.cos(both), ops.sin(both)
        if factor != 1:
            cosine, sine = ops.multiply(cosine, number(factor)), ops.multiply(sine, number(factor))
        return cls(cosine, sine, size, head)

    def turned(self, states: Node) -> Node:
        """Queries or keys [B, H, T, head], the first half of the elements against the second."""
        from openvino import opset13 as ops

        if self.size == self.head:
            return self._turned(states)
        leading, rest = ops.variadic_split(states, integer(3), ints(self.size, self.head - self.size)).outputs()
        return ops.concat([self._turned(leading), rest], -1)

    def _turned(self, states: Any) -> Node:
        from openvino import opset13 as ops

        half, last = self.size // 2, np.iinfo(np.int64).max
        first = ops.slice(states, ints(0), ints(half), ints(1), ints(3))
        second = ops.slice(states, ints(half), ints(last), ints(1), ints(3))
        crossed = ops.concat([ops.multiply(second, number(-1)), first], -1)
        return ops.add(ops.multiply(states, self.cosine), ops.multiply(crossed, self.sine))


@dataclass
class Attention:
    """Attention with a cache of keys and values, of all layers of a model.

    Attributes:
        decoder: Heads and window.
        inputs: Of the model.
        sinks: What keeps the caches, for the model.
    """

    decoder: Decoder
    inputs: Inputs
    sinks: list[Node] = field(default_factory=list)
    _mask: Node | None = None

    def heads(self, projected: Node, count: int) -> Node:
        """[B, T, count * head] as [B, T, count, head]."""
        from openvino import opset13 as ops

        return ops.reshape(projected, ints(0, 0, count, self.decoder.head_size), True)

    def attend(self, queries: Node, keys: Node, values: Node, layer: int) -> Node:
        """What every token sees of those before it: [B, T, heads * head].

        Args:
            queries: [B, heads, T, head].
            keys, values: [B, kv_heads, T, head], of the new tokens.
            layer: Names the cache.
        """
        from openvino import opset13 as ops

        decoder = self.decoder
        all_keys, all_values = self._cached(keys, f"{layer}.key"), self._cached(values, f"{layer}.value")
        scale = number(decoder.head_size**-0.5)
        mask = self._mask
        assert mask is not None
        mixed = ops.scaled_dot_product_attention(queries, self._repeated(all_keys), self._repeated(all_values), mask, scale, causal=False)
        mixed.set_friendly_name(f"blocks.{layer}.attention")
        turned = ops.transpose(mixed, ops.constant(np.array([0, 2, 1, 3], np.int32)))
        return ops.reshape(turned, ints(0, 0, decoder.heads * decoder.head_size), True)

    def _cached(self, new: Node, name: str) -> Node:
        """Old and new ones [B, kv_heads, past + T, head]; the cache's rows are those that `beam_idx` names."""
        from openvino import opset13 as ops
        from openvino.op.util import Variable, VariableInfo

        shape = [-1, self.decoder.kv_heads, -1, self.decoder.head_size]
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = _shape(shape), _f32(), f"past_key_values.{name}present.{name}"
        variable = Variable(info)
        rows = ops.gather(ops.shape_of(self.inputs.input_ids, output_type="i64"), ints(0), integer(0))
        empty = ops.broadcast(number(0), ops.concat([rows, ints(self.decoder.kv_heads), ints(0), ints(self.decoder.head_size)], 0))
        past = ops.gather(ops.read_value(empty, variable), self.inputs.beam_idx, integer(0))
        if self._mask is None:
            self._mask = causal_mask(self.inputs, past, effective_window(self.decoder))
        both = ops.concat([past, new], 2)
        self.sinks.append(ops.assign(both, variable))
        return both

    def _repeated(self, cached: Node) -> Node:
        """Each key-value head as often as queries share it."""
        from openvino import opset13 as ops

        decoder = self.decoder
        if (times := decoder.heads // decoder.kv_heads) == 1:
            return cached
        wide = ops.broadcast(ops.unsqueeze(cached, integer(2)), ints(1, 1, times, 1, 1), broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(wide, ints(0, decoder.heads, -1, decoder.head_size), True)


def effective_window(decoder: Decoder) -> int | None:
    """The sliding window, where it is shorter than the longest text."""
    return decoder.window if decoder.window is not None and decoder.window < decoder.positions else None


def causal_mask(inputs: Inputs, past: Node, window: int | None) -> Node:
    """0 where a token is seen, HIDDEN where not: [B, 1, T, past + T].

    Args:
        inputs: Of the model.
        past: A layer's cache [B, kv_heads, past, head].
        window: See Decoder.
    """
    from openvino import opset13 as ops

    before = ops.gather(ops.shape_of(past, output_type="i64"), integer(2), integer(0))
    new = ops.gather(ops.shape_of(inputs.input_ids, output_type="i64"), integer(1), integer(0))
    all_ = ops.add(before, new)
    keys = ops.range(integer(0), all_, integer(1), "i64")  # [past + T]
    queries = ops.unsqueeze(ops.range(before, all_, integer(1), "i64"), integer(1))  # [T, 1]
    seen = ops.less_equal(keys, queries)
    present = ops.unsqueeze(ops.convert(inputs.attention_mask, "boolean"), ints(1, 2))  # [B, 1, 1, past + T]
    if window is None:
        return ops.select(ops.logical_and(present, seen), number(0), number(HIDDEN))
    near = ops.greater(keys, ops.add(queries, integer(-window)))
    return _windowed(seen, near, present)


def _windowed(seen: Node, near: Node, present: Node) -> Node:
    """The mask of a sliding window, in the very operators by which the rewriting to paged attention finds the window: four
    conjunctions, Broadcast, Select, Slice. Any other form computes the same here, and loses the window there.
    """
    from openvino import opset13 as ops

    yes = ops.constant(np.array([True]))
    all_ = ops.bitwise_and(seen, near)
    all_ = ops.bitwise_and(yes, ops.bitwise_and(all_, yes))
    all_ = ops.broadcast(ops.bitwise_and(all_, present), ints(1, 1, 1, 1), broadcast_spec="BIDIRECTIONAL")
    mask = ops.select(all_, number(0), number(HIDDEN))
    return ops.slice(mask, ints(0), ints(np.iinfo(np.int64).max), ints(1), ints(3))


def _shape(dims: Sequence[int]) -> Any:
    import openvino

    return openvino.PartialShape(list(dims))


def _f32() -> Any:
    import openvino

    return openvino.Type.f32
