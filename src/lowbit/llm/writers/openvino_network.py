"""A decoder's network in OpenVINO's operators, from its tensors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.rope import frequencies
from lowbit.llm.writers.openvino_parts import Attention, Inputs, Rotation, activated, layer_norm, rms_norm
from lowbit.llm.writers.openvino_weights import Constants, Matrix

if TYPE_CHECKING:
    from openvino import Model, Node


def build(weights: Weights, constants: Constants, progress: Callable[[int, int], None] | None = None) -> Model:
    """The model, with its state; its constants lie where `constants` put them.

    Args:
        weights: Read one tensor at a time.
        constants: Kept open until the model was written.
        progress: Called with blocks made and blocks in all.
    """
    import openvino
    from openvino import opset13 as ops

    decoder = weights.decoder
    inputs = Inputs.make()
    network = _Network(weights, constants, inputs)
    embedding = network.matrix("embed.weight")
    hidden = embedding.rows(inputs.input_ids)
    if decoder.rope is None:
        hidden = ops.add(hidden, network.matrix("positions.weight").rows(inputs.position_ids))
    for index in range(decoder.layers):
        hidden = network.block(hidden, index)
        if progress is not None:
            progress(index + 1, decoder.layers)
    head = embedding if decoder.tied else network.matrix("head.weight")
    logits = ops.result(head.product(network.norm(hidden, "norm"), network.vector("head.bias")), name="logits")
    logits.output(0).set_names({"logits"})
    model = openvino.Model([logits], network.attention.sinks, inputs.all(), "decoder")
    model.set_rt_info(str(decoder.positions), ["lowbit", "positions"])
    model.set_rt_info(str(_longest_of_many(decoder)), ["lowbit", "positions_of_many"])
    return model


class _Network:
    """Blocks of one model.

    Attributes:
        attention: Of all blocks, with their caches.
    """

    def __init__(self, weights: Weights, constants: Constants, inputs: Inputs) -> None:
        self._weights = weights
        self._constants = constants
        self._names = frozenset(weights.names())
        self._decoder = weights.decoder
        self._rotation = None if self._decoder.rope is None else _rotation(self._decoder, inputs)
        self.attention = Attention(self._decoder, inputs)

    def matrix(self, name: str) -> Matrix:
        return Matrix(self._constants, self._weights.get(name), name)

    def vector(self, name: str) -> Node | None:
        """A norm's weight or a bias, in float32; None where there is none."""
        from openvino import opset13 as ops

        if name not in self._names:
            return None
        stored = self._weights.get(name)
        assert isinstance(stored, np.ndarray)
        return ops.convert(self._constants.floating(stored, name), "f32")

    def norm(self, inputs: Node, name: str) -> Node:
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        assert weight is not None
        if self._decoder.norm == "layer":
            return layer_norm(inputs, weight, bias, self._decoder.epsilon)
        return rms_norm(inputs, weight, self._decoder.epsilon)

    def block(self, hidden: Node, index: int) -> Node:
        from openvino import opset13 as ops

        name = f"blocks.{index}"
        normed = self.norm(hidden, f"{name}.norm1")
        attended = self._linear(self._attended(normed, index), f"{name}.attention.o")
        if self._decoder.parallel:
            return ops.add(hidden, ops.add(attended, self._mlp(normed, f"{name}.mlp")))
        hidden = ops.add(hidden, attended)
        return ops.add(hidden, self._mlp(self.norm(hidden, f"{name}.norm2"), f"{name}.mlp"))

    def _linear(self, inputs: Node, name: str) -> Node:
        return self.matrix(f"{name}.weight").product(inputs, self.vector(f"{name}.bias"))

    def _attended(self, normed: Node, index: int) -> Node:
        from openvino import opset13 as ops

        name, decoder = f"blocks.{index}.attention", self._decoder
        queries = self.attention.heads(self._linear(normed, f"{name}.q"), decoder.heads)
        keys = self.attention.heads(self._linear(normed, f"{name}.k"), decoder.kv_heads)
        values = self.attention.heads(self._linear(normed, f"{name}.v"), decoder.kv_heads)
        if decoder.qk_norm:
            queries, keys = self.norm(queries, f"{name}.q_norm"), self.norm(keys, f"{name}.k_norm")
        order = ops.constant(np.array([0, 2, 1, 3], np.int32))
        queries, keys, values = (ops.transpose(each, order) for each in (queries, keys, values))
        if self._rotation is not None:
            queries, keys = self._rotation.turned(queries), self._rotation.turned(keys)
        return self.attention.attend(queries, keys, values, index)

    def _mlp(self, normed: Node, name: str) -> Node:
        from openvino import opset13 as ops

        activation = self._decoder.activation
        if not self._decoder.gated:
            return self._linear(activated(self._linear(normed, f"{name}.up"), activation), f"{name}.down")
        gate = activated(self._linear(normed, f"{name}.gate"), activation)
        return self._linear(ops.multiply(gate, self._linear(normed, f"{name}.up")), f"{name}.down")


def _rotation(decoder: Decoder, inputs: Inputs) -> Rotation:
    """Of the positions that the model is fed; longrope turns long texts at another speed than short ones."""
    rope = decoder.rope
    assert rope is not None
    speed, factor = frequencies(rope, decoder.positions, 1)
    longest = _original(decoder)
    beyond = None if longest is None else frequencies(rope, decoder.positions, longest + 1)[0]
    return Rotation.of(inputs.position_ids, rope.size, decoder.head_size, speed, factor, beyond, longest)


def _original(decoder: Decoder) -> int | None:
    """Tokens of a short text for longrope; None for all other kinds."""
    scaling = None if decoder.rope is None else decoder.rope.scaling
    if scaling is None or scaling.get("rope_type") != "longrope":
        return None
    return int(scaling["original_max_position_embeddings"])


def _longest_of_many(decoder: Decoder) -> int:
    """Tokens of a text where several are computed at once: paged attention does not see where a text ends, nor that it is a long one."""
    return min(decoder.positions, _original(decoder) or decoder.positions)
