"""What each target runs on integers, and what it fuses: placement as data, one profile a target.

A profile says nothing about a particular model. `graph/place.py` reads it to decide where QuantizeLinear and
DequantizeLinear pairs go; the numbers behind each choice are in docs/lab.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowbit.errors import unknown
from lowbit.recipe import Dtype, QuantSpec

MOVES = frozenset(
    {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators whose output holds values of their input, and zeros: quantized on the same grid, they cost nothing. Resize to the nearest and
Pad with zeros alone (graph/flow.py)."""

_SIGNED: dict[str, Dtype] = {"uint4": "int4", "uint8": "int8", "uint16": "int16"}
_UNSIGNED: dict[str, Dtype] = {"int4": "uint4", "int8": "uint8", "int16": "uint16"}
_BY_TENSOR = QuantSpec("uint8")
_BY_CHANNEL = QuantSpec("int8", "per-channel", symmetric=True)


@dataclass(frozen=True)
class Profile:
    """How one target wants a quantized graph.

    Attributes:
        name: Of the target, e.g. "onnxruntime-cpu".
        activations: How activations are quantized unless a recipe says otherwise. Its sign and symmetry are the target's dialect, in
            which whatever a recipe asks for is expressed.
        weights: How weights are.
        products: Operators with weights that have an integer kernel.
        float_output: Those of `products` that can give floating point without losing their integer kernel.
        absorbed: Operators that a kernel applies to its result before it is rounded, so that nothing is quantized between.
        gates: Operators g for which x * g(x) is absorbed as one activation (SiLU, hard swish).
        elementwise: Operators of several activations with an integer kernel.
        unary: Operators of one activation with an integer kernel and a grid of their own. Those among `moves`, too, have it where they do
            more than move: Resize that interpolates.
        moves: Operators that keep the grid.
        joins: Operators whose inputs and output share one grid.
        joins_rows: A matrix product on integers may read a join along another axis than the one it sums over.
        constants: Operands of `elementwise` may be constants, which are quantized like activations.
        saturates: Relu and Clip are absorbed by the grid that follows them, which therefore must not reach beyond their bounds.
        integer_bias: Biases are int32 on the grid of input times weight; floating point otherwise.
        sums_in_place: A product whose result is only added to something leaves it unrounded for the sum.
        attention: Products of two activations run on integers.
        int4_weights: Weights of 4 bits are stored as such; else in bytes, on the same grid, for which there are integer kernels.
        blocks: Types of weights that may be quantized in blocks (and are then stored as such); others have a grid per channel instead.
        outputs: What the graph gives is rounded wherever a kernel can hand out integers, so that nothing at its end stays floating point.
        sums_apart: Sums in front of a normalisation are written so that they are not fused with it (graph/spelling.py).
        opset: Least operator set of the artifact.
    """

    name: str
    activations: QuantSpec = _BY_TENSOR
    weights: QuantSpec = _BY_CHANNEL
    products: frozenset[str] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
    float_output: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset({"Clip", "Relu"})
    gates: frozenset[str] = frozenset()
    elementwise: frozenset[str] = frozenset({"Add", "Mul"})
    unary: frozenset[str] = frozenset()
    moves: frozenset[str] = MOVES
    joins: frozenset[str] = frozenset({"Concat"})
    joins_rows: bool = True
    constants: bool = False
    saturates: bool = False
    integer_bias: bool = True
    sums_in_place: bool = False
    attention: bool = False
    int4_weights: bool = False
    blocks: frozenset[str] = frozenset({"int4", "uint4"})
    outputs: bool = False
    sums_apart: bool = False
    opset: int = 13

    def activation(self, spec: QuantSpec) -> QuantSpec:
        """What a recipe asks of activations, in the target's dialect: as many bits, with the target's sign and symmetry.

        A signed and an unsigned grid of the same width are the same grid (quant/affine.py), but kernels know one of them.
        """
        signed = not self.activations.dtype.startswith("u")
        return QuantSpec(
            _SIGNED.get(spec.dtype, spec.dtype) if signed else _UNSIGNED.get(spec.dtype, spec.dtype),
            symmetric=spec.symmetric or self.activations.symmetric,
        )

    def weight(self, spec: QuantSpec) -> QuantSpec:
        """What a recipe asks of weights, as far as the target has it."""
        if self.activations.symmetric:  # a target without zero points has none for weights either
            spec = replace(spec, dtype=_SIGNED.get(spec.dtype, spec.dtype), symmetric=True)
        if spec.granularity == "per-group" and spec.dtype not in self.blocks:
            return replace(spec, granularity="per-channel", block=None)
        return spec


_ACTIVATIONS = frozenset({"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Sigmoid", "Tanh"})

ONNXRUNTIME_CPU = Profile(
    "onnxruntime-cpu",
    products=frozenset({"Conv", "Gemm", "MatMul"}),
    float_output=frozenset({"Gemm", "MatMul"}),
    unary=frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}),
    saturates=True,
    sums_apart=True,
)
"""x86 and Arm servers. Its convolution has an integer kernel only between quantized tensors, its transposed one has none; Relu and Clip
alone are absorbed. Its integer kernels take blocks of weights for channels and fail: only 4-bit weights, which none reads, may be cut."""

OPENVINO_CPU = Profile(
    "openvino-cpu",
    float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    absorbed=_ACTIVATIONS,
    gates=frozenset({"HardSigmoid", "Sigmoid"}),
    elementwise=frozenset({"Add"}),
    unary=frozenset({"AveragePool", "GlobalAveragePool"}),
    joins_rows=False,
    blocks=frozenset({"int4", "int8", "uint4"}),
)
"""oneDNN kernels take any pointwise function and a sum after the product, in registers. A matrix product of joined rows fails to compile
on integers (2026.4), and signed joins on one grid compile to wrong answers: activations are unsigned."""

TENSORRT = Profile(
    "tensorrt",
    activations=QuantSpec("int8", symmetric=True),
    float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    absorbed=frozenset({"Clip", "LeakyRelu", "Relu"}),
    elementwise=frozenset({"Add"}),
    unary=frozenset({"AveragePool", "GlobalAveragePool"}),
    integer_bias=False,
    int4_weights=True,
    blocks=frozenset({"int4"}),
)
"""Explicit quantization: symmetric int8 only, pairs on both operands of a residual sum, biases in floating point."""

QNN = Profile(
    "qnn",
    elementwise=frozenset({"Add", "Div", "Mul", "Sub"}),
    unary=frozenset(
        {"AveragePool", "Clip", "Elu", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "ReduceMean", "Relu"}
        | {"Exp", "Resize", "Sigmoid", "Softmax", "Tanh"}
    ),
    attention=True,
    constants=True,
    saturates=True,
    int4_weights=True,
    blocks=frozenset(),
    outputs=True,
)
"""Hexagon: the whole graph on integers, activations unsigned (signed asymmetric ones run and are wrong), 8 or 16 bit. Relu and Clip that
no kernel absorbs are operators of their own."""

PROFILES = {profile.name: profile for profile in (ONNXRUNTIME_CPU, OPENVINO_CPU, TENSORRT, QNN)}


def profile(name: str) -> Profile:
    """The profile of a target.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PROFILES:
        raise unknown("target", name, PROFILES)
    return PROFILES[name]


def target_of(runtime: str) -> str:
    """The target that a runtime's artifacts are placed for; onnxruntime's where it has no profile of its own."""
    return f"{runtime}-cpu" if f"{runtime}-cpu" in PROFILES else ONNXRUNTIME_CPU.name
