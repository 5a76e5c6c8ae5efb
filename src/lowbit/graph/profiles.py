"""What each target runs on integers, and what it fuses: placement as data, one profile a target.

A profile says nothing about a particular model. `graph/place.py` reads it to decide where QuantizeLinear and
DequantizeLinear pairs go; the numbers behind each choice are in docs/lab.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.errors import unknown
from lowbit.recipe import QuantSpec

MOVES = frozenset(
    {"DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze", "Expand"}
)
"""Operators whose output holds values of their input, and zeros: quantized on the same grid, they cost nothing."""


@dataclass(frozen=True)
class Profile:
    """How one target wants a quantized graph.

    Attributes:
        name: Of the target, e.g. "onnxruntime-cpu".
        activations: How activations are quantized unless a recipe says otherwise.
        weights: How weights are.
        products: Operators with weights that have an integer kernel.
        float_output: Those of `products` that can give floating point without losing their integer kernel.
        absorbed: Operators that a kernel applies to its result before it is rounded, so that nothing is quantized between.
        gates: Operators g for which x * g(x) is absorbed as one activation (SiLU, hard swish).
        elementwise: Operators of several activations with an integer kernel.
        unary: Operators of one activation with an integer kernel and a grid of their own.
        moves: Operators that keep the grid.
        joins: Operators whose inputs and output share one grid.
        integer_bias: Biases are int32 on the grid of input times weight; floating point otherwise.
        sums_in_place: A product whose result is only added to something leaves it unrounded for the sum.
        attention: Products of two activations run on integers.
        folds_scaling: A factor a channel may be merged into QuantizeLinear's scale.
        opset: Least operator set of the artifact.
    """

    name: str
    activations: QuantSpec = QuantSpec("uint8")
    weights: QuantSpec = QuantSpec("int8", "per-channel", symmetric=True)
    products: frozenset[str] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
    float_output: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset({"Clip", "Relu"})
    gates: frozenset[str] = frozenset()
    elementwise: frozenset[str] = frozenset({"Add", "Mul"})
    unary: frozenset[str] = frozenset()
    moves: frozenset[str] = MOVES
    joins: frozenset[str] = frozenset({"Concat"})
    integer_bias: bool = True
    sums_in_place: bool = False
    attention: bool = False
    folds_scaling: bool = False
    opset: int = 13


_ACTIVATIONS = frozenset({"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Sigmoid", "Tanh"})

ONNXRUNTIME_CPU = Profile(
    "onnxruntime-cpu",
    float_output=frozenset({"Gemm", "MatMul"}),
    unary=frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}),
)
"""x86 and Arm servers. Its convolution has an integer kernel only between quantized tensors; Relu and Clip alone are absorbed."""

OPENVINO_CPU = Profile(
    "openvino-cpu",
    float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    absorbed=_ACTIVATIONS,
    gates=frozenset({"HardSigmoid", "Sigmoid"}),
    elementwise=frozenset({"Add"}),
    unary=frozenset({"AveragePool", "GlobalAveragePool"}),
)
"""oneDNN kernels take any pointwise function and a sum after the product, in registers."""

TENSORRT = Profile(
    "tensorrt",
    activations=QuantSpec("int8", symmetric=True),
    float_output=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    absorbed=frozenset({"Clip", "LeakyRelu", "Relu"}),
    elementwise=frozenset({"Add"}),
    unary=frozenset({"AveragePool", "GlobalAveragePool"}),
    integer_bias=False,
)
"""Explicit quantization: symmetric int8 only, pairs on both operands of a residual sum, biases in floating point."""

QNN = Profile(
    "qnn",
    elementwise=frozenset({"Add", "Div", "Mul", "Sub"}),
    unary=frozenset(
        {"AveragePool", "Elu", "Gelu", "GlobalAveragePool", "HardSwish", "LeakyRelu", "PRelu", "ReduceMean", "Sigmoid", "Softmax", "Tanh"}
    ),
    attention=True,
)
"""Hexagon: the whole graph on integers, activations unsigned (signed asymmetric ones run and are wrong), 8 or 16 bit."""

PROFILES = {profile.name: profile for profile in (ONNXRUNTIME_CPU, OPENVINO_CPU, TENSORRT, QNN)}


def profile(name: str) -> Profile:
    """The profile of a target.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PROFILES:
        raise unknown("target", name, PROFILES)
    return PROFILES[name]
