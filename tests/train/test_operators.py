"""Each operator of the torch twin against onnxruntime, one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import Case, compare, floats, integers

from lowbit.errors import ModelError
from lowbit.train.operators import OPERATORS, Attributes
from lowbit.train.operators.table import ints, together

X = floats(2, 3, 4)
IMAGE = floats(2, 4, 7, 9)
POSITIVE = floats(2, 3, 4, low=0.1, high=4)
WHOLE = np.random.default_rng(1).integers(-9, 9, (2, 3, 4))
TRUTH, OTHER = X > 0, floats(2, 3, 4, seed=1) > 0
SMALL = np.array(-0.5, np.float32), np.array(1.0, np.float32)


def unary() -> list[Case]:
    plain = (
        "Abs Ceil Cos Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Round Sigmoid Sign Sin Softplus Softsign Tanh"
    )
    return [Case(op, (X,)) for op in (*plain.split(), "Elu", "Dropout")] + [
        *(Case(op, (POSITIVE,)) for op in ("Log", "Reciprocal", "Sqrt")),
        Case("Round", (np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32),)),
        Case("Neg", (WHOLE,)),
        Case("LeakyRelu", (X,), {"alpha": 0.3}),
        Case("Elu", (X,), {"alpha": 0.7}),
        Case("HardSigmoid", (X,), {"alpha": 0.4, "beta": 0.3}),
        Case("Gelu", (X,)),
        Case("Gelu", (X,), {"approximate": "tanh"}),
        Case("PRelu", (IMAGE, floats(4, 1, 1, seed=2))),
        Case("Clip", (X, *SMALL)),
        Case("Clip", (X, None, SMALL[1])),
        Case("Clip", (X, SMALL[0])),
        Case("Clip", (X,)),
        Case("Clip", (X,), {"min": -0.25, "max": 0.5}, opset=10),
        Case("Clip", (WHOLE, np.array(-2), np.array(3))),
    ]


def binary() -> list[Case]:
    row = floats(3, 1, seed=3)
    found = [Case(op, (X, row)) for op in ("Add", "Mul", "Sub", "Div", "Max", "Min", "Sum")]
    found += [Case(op, (WHOLE, np.full_like(WHOLE, 4))) for op in ("Add", "Mul", "Sub", "Div", "Mod", "Max", "Min")]
    found += [Case(op, (X, floats(2, 3, 4, seed=5))) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")]
    found += [Case(op, (WHOLE, np.flip(WHOLE, 0).copy())) for op in ("Equal", "Greater")]
    found += [Case(op, (TRUTH, OTHER)) for op in ("And", "Or", "Xor")]
    return [
        *found,
        Case("Max", (X, row, floats(1, seed=9))),
        Case("Mod", (X, POSITIVE), {"fmod": 1}),
        Case("Pow", (POSITIVE, np.array(1.7, np.float32))),
        Case("Pow", (X, np.array(2, np.int64))),
        Case("Not", (TRUTH,)),
        Case("Where", (TRUTH, X, row)),
        Case("Where", (TRUTH, WHOLE, np.zeros((1, 1, 1), np.int64))),
        Case("IsNaN", (np.array([1.0, np.nan], np.float32),)),
        Case("Cast", (X * 3,), {"to": 7}),
        Case("Cast", (WHOLE,), {"to": 1}),
        Case("Cast", (WHOLE,), {"to": 9}),
        Case("Cast", (TRUTH,), {"to": 1}),
        Case("CastLike", (X * 3, WHOLE)),
    ]


def products() -> list[Case]:
    a, b, c = floats(3, 5), floats(5, 4, seed=1), floats(4, seed=2)
    kernel, bias = floats(6, 2, 3, 3, seed=3), floats(6, seed=4)
    up = floats(4, 3, 3, 3, seed=5)
    return [
        Case("MatMul", (floats(2, 3, 4, 5), floats(5, 6, seed=1))),
        Case("MatMul", (floats(2, 3, 4, 5), floats(3, 5, 2, seed=1))),
        Case("MatMul", (floats(5), floats(5, 2, seed=1))),
        Case("Gemm", (a, b, c)),
        Case("Gemm", (a.T.copy(), b.T.copy(), c), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
        Case("Gemm", (a, b)),
        Case("Einsum", (floats(2, 3, 4), floats(2, 4, 5, seed=1)), {"equation": "bij,bjk->bik"}),
        Case("Conv", (IMAGE, kernel, bias), {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
        Case("Conv", (IMAGE, kernel), {"group": 2, "dilations": [2, 3], "pads": [1, 1, 1, 1]}),
        *(Case("Conv", (IMAGE, kernel, bias), {"group": 2, "auto_pad": mode, "strides": [2, 2]}) for mode in ("SAME_UPPER", "SAME_LOWER")),
        Case("Conv", (IMAGE, kernel, bias), {"group": 2, "auto_pad": "VALID"}),
        Case("Conv", (floats(2, 3, 9), floats(4, 3, 3, seed=1)), {"pads": [1, 1]}),
        Case("Conv", (floats(1, 2, 4, 5, 6), floats(3, 2, 2, 2, 2, seed=1)), {"pads": [0, 1, 0, 1, 0, 1]}),
        Case("ConvTranspose", (IMAGE, up, floats(3, seed=6)), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
        Case("ConvTranspose", (IMAGE, up), {"strides": [2, 3], "pads": [0, 1, 2, 0]}),
        Case("ConvTranspose", (IMAGE, floats(4, 3, 2, 2, seed=5), floats(6, seed=6)), {"group": 2, "dilations": [2, 1]}),
    ]


def pools() -> list[Case]:
    found = []
    for op in ("MaxPool", "AveragePool"):
        found += [
            Case(op, (IMAGE,), {"kernel_shape": [3, 2]}),
            Case(op, (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]}),
            Case(op, (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
            Case(op, (IMAGE,), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
            Case(op, (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
            Case(op, (floats(2, 3, 9),), {"kernel_shape": [4], "strides": [2]}),
        ]
    padded = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}
    return [
        *found,
        Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "dilations": [2, 2]}),
        Case("AveragePool", (IMAGE,), padded),
        Case("AveragePool", (IMAGE,), {**padded, "ceil_mode": 1}),
        Case("GlobalAveragePool", (IMAGE,)),
        Case("GlobalMaxPool", (IMAGE,)),
    ]


def normalizations() -> list[Case]:
    per_channel = floats(4, seed=1), floats(4, seed=2), floats(4, seed=3), floats(4, seed=4, low=0.2)
    return [
        Case("BatchNormalization", (IMAGE, *per_channel), {"epsilon": 1e-3}),
        Case("InstanceNormalization", (IMAGE, *per_channel[:2])),
        Case("LayerNormalization", (X, floats(4, seed=1), floats(4, seed=2))),
        Case("LayerNormalization", (X, floats(3, 4, seed=1)), {"axis": 1, "epsilon": 1e-2}),
        Case("SimplifiedLayerNormalization", (X, floats(4, seed=1)), {"axis": -1, "epsilon": 1e-4}),
        Case("RMSNormalization", (X, floats(4, seed=1)), {"epsilon": 1e-4}, opset=23),
        Case("LpNormalization", (X,), {"axis": 1}),
        *(Case(op, (X,), {"axis": 1}) for op in ("Softmax", "LogSoftmax")),
        *(Case(op, (X,)) for op in ("Softmax", "LogSoftmax")),
        Case("Softmax", (X,), {"axis": 1}, opset=11),
    ]


def reductions() -> list[Case]:
    names = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
    return [
        *(Case(op, (X, integers(0, 2))) for op in names),
        *(Case(op, (X, integers(-1)), {"keepdims": 0}) for op in names),
        *(Case(op, (X,)) for op in names),
        Case("ReduceSum", (X,), {"noop_with_empty_axes": 1}),
        Case("ReduceMean", (X,), {"axes": [1], "keepdims": 0}, opset=13),
        Case("ReduceProd", (WHOLE, integers(1))),
        Case("ArgMax", (X,), {"axis": 1, "keepdims": 0}),
        Case("CumSum", (X, np.array(1))),
    ]


def shapes() -> list[Case]:
    table = floats(10, 4)
    return [
        Case("Shape", (X,)),
        Case("Shape", (X,), {"start": 1, "end": -1}),
        Case("Size", (X,)),
        Case("Reshape", (X, integers(0, -1))),
        Case("Reshape", (np.zeros((0, 3), np.float32), integers(3, 0)), {"allowzero": 1}),
        Case("Flatten", (IMAGE,), {"axis": 2}),
        Case("Flatten", (IMAGE,), {"axis": -1}),
        Case("Flatten", (IMAGE,), {"axis": 0}),
        Case("Squeeze", (floats(1, 3, 1), integers(0, -1))),
        Case("Squeeze", (floats(1, 3, 1),)),
        Case("Squeeze", (floats(1, 3, 1),), {"axes": [2]}, opset=11),
        Case("Unsqueeze", (X, integers(-1, 1))),
        Case("Unsqueeze", (X,), {"axes": [0]}, opset=11),
        Case("Transpose", (X,)),
        Case("Transpose", (X,), {"perm": [1, 2, 0]}),
        Case("Expand", (floats(3, 1), integers(2, 1, 4))),
        Case("Tile", (X, integers(2, 1, 3))),
        Case("Concat", (X, floats(2, 1, 4, seed=1)), {"axis": -2}),
        Case("Split", (X, integers(1, 3)), {"axis": -1}, outputs=2),
        Case("Split", (floats(7, 2),), {"num_outputs": 3}, outputs=3),
        Case("Split", (X,), {"axis": 2, "split": [3, 1]}, outputs=2, opset=11),
        Case("Slice", (IMAGE, integers(1, -3), integers(100, 2**63 - 1), integers(2, -1), integers(2, 1))),
        Case("Slice", (IMAGE, integers(-1), integers(-(2**63)), integers(3), integers(-2))),
        Case("Slice", (IMAGE,), {"starts": [1], "ends": [-1], "axes": [2]}, opset=9),
        Case("Pad", (IMAGE, integers(0, 0, 1, 2, 0, 1, 0, -1), np.array(0.5, np.float32))),
        Case("Pad", (IMAGE, integers(1, 2), None, integers(-1))),
        *(Case("Pad", (IMAGE, integers(0, 0, 1, 2, 0, 0, 3, 1)), {"mode": mode}) for mode in ("reflect", "edge")),
        Case("Pad", (IMAGE,), {"pads": [0, 0, 1, 1, 0, 0, 0, 2], "value": 1.5}, opset=10),
        Case("Gather", (table, np.array([[0, -1], [3, 9]]))),
        Case("Gather", (X, np.array(1)), {"axis": 1}),
        Case("Gather", (integers(5, 6, 7), np.array(0))),
        Case("GatherElements", (X, np.array([[[0, 1, -1, 2]], [[2, 2, 0, 1]]])), {"axis": 1}),
        Case("GatherND", (X, np.array([[0, 1], [1, 2]]))),
        Case("Range", (np.array(1), np.array(9), np.array(3))),
        Case("Range", (np.array(0.5, np.float32), np.array(2, np.float32), np.array(0.5, np.float32))),
        Case("ConstantOfShape", (integers(2, 3),)),
        Case("Trilu", (floats(4, 4),)),
        Case("Trilu", (floats(2, 4, 5), np.array(-1)), {"upper": 0}),
        *(Case("DepthToSpace", (floats(2, 8, 3, 2),), {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
        Case("SpaceToDepth", (floats(2, 3, 4, 6),), {"blocksize": 2}),
    ]


def resizes() -> list[Case]:
    scales, sizes = np.array([1, 1, 2, 1.7], np.float32), integers(2, 4, 5, 20)
    found = []
    for mode in ("nearest", "linear"):
        for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
            form = {"mode": mode, "coordinate_transformation_mode": coordinates}
            found += [Case("Resize", (IMAGE, None, scales), form), Case("Resize", (IMAGE, None, None, sizes), form)]
    rounding = ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")
    found += [
        Case("Resize", (IMAGE, None, scales), {"nearest_mode": each, "coordinate_transformation_mode": "asymmetric"}) for each in rounding
    ]
    return [*found, Case("Resize", (IMAGE, scales), opset=10), Case("Resize", (IMAGE, None, scales[2:]), {"axes": [2, 3]})]


def recurrent() -> list[Case]:
    found = []
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        x, states = floats(6, 2, 5), op == "LSTM"
        for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            parts = floats(count, gates * 3, 5, seed=1), floats(count, gates * 3, 3, seed=2), floats(count, gates * 6, seed=3)
            given = {"hidden_size": 3, "direction": direction} | ({} if states else {"linear_before_reset": 1})
            first = [floats(count, 2, 3, seed=seed) for seed in ((4, 5) if states else (4,))]
            found += [
                Case(op, (x, *parts, None, *first), given, outputs=3 if states else 2),
                Case(op, (x, *parts[:2]), given, outputs=3 if states else 2),
            ]
    return found


ALL = [*unary(), *binary(), *products(), *pools(), *normalizations(), *reductions(), *shapes(), *resizes(), *recurrent()]


@pytest.mark.parametrize("case", ALL, ids=[f"{case.op}-{place}" for place, case in enumerate(ALL)])
def test_operator_equals_onnxruntime(case: Case, tmp_path: Path) -> None:
    compare(case, tmp_path / "one.onnx")


def test_every_operator_of_the_table_is_tested() -> None:
    assert {case.op for case in ALL} == set(OPERATORS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases") / "one.onnx"


spans = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_windows_of_any_form(model: Path, data: st.DataObject) -> None:
    """Kernel, stride, padding and rounding of sizes; a window always overlaps the input, as onnxruntime wants it."""
    height, width = data.draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = [data.draw(st.integers(0, kernel[axis % 2] - 1)) for axis in range(4)]
    form = {"strides": [data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))], "pads": pads}
    x = floats(1, 2, height, width, seed=data.draw(spans))
    ceil = {"kernel_shape": list(kernel), "ceil_mode": data.draw(st.integers(0, 1))}
    compare(Case("MaxPool", (x,), form | ceil), model)
    compare(Case("AveragePool", (x,), form | ceil | {"count_include_pad": data.draw(st.integers(0, 1))}), model)
    compare(Case("Conv", (x, floats(4, 2, *kernel, seed=1)), form), model)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(-9, 9),
    st.one_of(st.integers(-9, 9), st.sampled_from([2**63 - 1, -(2**63), 2**31 - 1])),
    st.integers(-3, 3).filter(bool),
)
def test_slices_of_any_form(model: Path, size: int, start: int, end: int, step: int) -> None:
    compare(Case("Slice", (floats(2, size), integers(start), integers(end), integers(1), integers(step))), model)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 13),
    st.sampled_from(["nearest", "linear"]),
    st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
)
def test_resizes_to_any_size(model: Path, old: int, new: int, mode: str, coordinates: str) -> None:
    form = {"mode": mode, "coordinate_transformation_mode": coordinates}
    compare(Case("Resize", (floats(1, 1, 2, old), None, None, integers(1, 1, 2, new)), form), model)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_arithmetic_broadcasts(model: Path, shape: list[int], data: st.DataObject) -> None:
    other = [data.draw(st.sampled_from([1, size])) for size in shape[data.draw(st.integers(0, len(shape) - 1)) :]]
    for op in ("Add", "Sub", "Mul", "Div", "Max"):
        compare(Case(op, (floats(*shape), floats(*other, seed=1, low=0.5))), model)


REFUSED = [
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 2]}, outputs=2),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    Case("Resize", (IMAGE, None, np.array([1, 1, 2, 2], np.float32)), {"mode": "cubic"}),
    Case("GRU", (floats(6, 2, 5), floats(1, 9, 5), floats(1, 9, 3)), {"hidden_size": 3}),
    Case("LSTM", (floats(6, 2, 5), floats(1, 12, 5), floats(1, 12, 3)), {"hidden_size": 3, "clip": 1.0}),
    Case("GatherND", (X, np.array([[0], [1]])), {"batch_dims": 1}),
]


@pytest.mark.parametrize("case", REFUSED, ids=[case.op for case in REFUSED])
def test_a_form_that_is_not_known_is_refused_by_name(case: Case) -> None:
    given_ = Attributes(case.op, "it", case.attributes, case.opset, case.outputs)
    with pytest.raises(ModelError, match=f"{case.op} 'it'"):
        OPERATORS[case.op](given_, *(None if value is None else torch.from_numpy(np.array(value)) for value in case.inputs))


def test_numbers_come_as_tensors_lists_or_nothing() -> None:
    assert ints(torch.tensor([[1, 2]])) == [1, 2]
    assert ints(3) == [3]
    assert ints(None) is None
    assert [t.device.type for t in together(torch.zeros(1), torch.zeros(1))] == ["cpu", "cpu"]
