"""The .tflite file: what stands in it, read back, and what LiteRT's and TensorFlow Lite Micro's kernels make of every operation."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from one_operation import IN, Maker, grid, per_channel, program_of

from conftest import missing
from lowbit.data.preprocess import Preprocess
from lowbit.errors import ModelError
from lowbit.export.litert import check, metadata, sessions
from lowbit.export.litert.versions import version
from lowbit.export.litert.writer import schema, to_bytes
from lowbit.export.program import reference
from lowbit.export.program.program import Kind, Operation, Program
from lowbit.types import Array

ONE_STEP = {
    sessions.XNNPACK: set(Kind),
    sessions.BUILT_IN: {Kind.CONV_2D, Kind.DEQUANTIZE, Kind.FULLY_CONNECTED, Kind.MEAN, Kind.QUANTIZE},
    sessions.REFERENCE: {Kind.FULLY_CONNECTED},
    sessions.MICRO: set(),
}
"""Kinds in which a kernel set may differ from TensorFlow Lite Micro by one level; in all others not at all."""


@pytest.fixture(autouse=True)
def fb() -> ModuleType:
    """The classes of the schema."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        missing("ai-edge-litert")
    return schema()


def read(content: bytes, fb: ModuleType) -> Any:
    return fb.ModelT.InitFromObj(fb.Model.GetRootAs(content, 0))


def samples(program: Program, rows: int = 8) -> dict[str, Array]:
    shape = (rows, *program.inputs[0].shape[1:])
    return {"in": np.random.default_rng(1).normal(0, 1.5, shape).astype(np.float32)}


# What runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_computes_what_the_reference_computes(kind: Kind) -> None:
    program = program_of(kind)
    content, feeds = to_bytes(program), samples(program)
    assert check.findings(content, program) == []
    expected = reference.run_integers(program, feeds)["out"]
    assert len(np.unique(expected)) > 10
    for kernels in sessions.kernel_sets():
        found = sessions.LiteRtSession(content, program, kernels).integers(feeds)["out"]
        assert found.shape == expected.shape
        allowed = int(kind in ONE_STEP[kernels])
        assert np.abs(found.astype(int) - expected).max() <= allowed, kernels


def test_a_wrong_weight_would_be_noticed() -> None:
    program = program_of(Kind.CONV_2D)
    weights = program.tensors["weights"]
    assert weights.data is not None
    turned = replace(weights, data=np.ascontiguousarray(weights.data[:, ::-1]))
    changed = replace(program, tensors={**program.tensors, "weights": turned})
    (kernels, *_) = sessions.kernel_sets()
    found = sessions.LiteRtSession(to_bytes(changed), program, kernels).integers(samples(program))["out"]
    assert np.abs(found.astype(int) - reference.run_integers(program, samples(program))["out"]).max() > 1
    assert [finding.text for finding in check.findings(to_bytes(changed), program)] == [
        "Tensor 'weights' has other values in the file than in the program."
    ]


# What stands in the file -----------------------------------------------------------------------------------------------


def test_scales_are_the_programs_own(fb: ModuleType) -> None:
    program = program_of(Kind.DEPTHWISE_CONV_2D)
    (graph,) = read(to_bytes(program), fb).subgraphs
    tensors = {tensor.name.decode(): tensor for tensor in graph.tensors}
    weights, bias, x = (tensors[name].quantization for name in ("weights", "bias", "x"))
    own = program.tensors["weights"].grid
    assert own is not None
    assert weights.scale.tolist() == own.scale.tolist()
    assert weights.zeroPoint.tolist() == [0, 0, 0, 0]
    assert (weights.quantizedDimension, bias.quantizedDimension) == (3, 0)
    assert (x.scale.tolist(), x.zeroPoint.tolist()) == ([np.float32(IN[0])], [IN[1]])
    assert tensors["real"].quantization is None
    assert [tensors[name].type for name in ("real", "x", "weights", "bias")] == [
        fb.TensorType.FLOAT32, fb.TensorType.INT8, fb.TensorType.INT8, fb.TensorType.INT32
    ]  # fmt: skip


def test_constants_lie_at_multiples_of_16_bytes(fb: ModuleType) -> None:
    content = to_bytes(program_of(Kind.FULLY_CONNECTED), {"odd": b"x" * 13})
    model = fb.Model.GetRootAs(content, 0)
    assert content[4:8] == b"TFL3"
    starts = []
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.DataLength():
            table = buffer._tab
            starts.append(table.Vector(table.Offset(4)))
    assert len(starts) == 3
    assert [start % 16 for start in starts] == [0, 0, 0]
    assert model.Buffers(0).DataLength() == 0


def test_the_signature_has_the_source_models_names() -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=to_bytes(program_of(Kind.SOFTMAX)))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["in"], "outputs": ["out"]}}
    runner = interpreter.get_signature_runner("serving_default")
    answer = runner(**{"in": np.zeros((1, 10), np.float32)})["out"]
    assert answer.tolist() == [[pytest.approx(0.1015625)] * 10]


def test_the_same_program_makes_the_same_bytes() -> None:
    first, second = (to_bytes(program_of(Kind.CONV_2D)) for _ in range(2))
    assert first == second


def one(kind: Kind, **options: Any) -> tuple[Operation, Program]:
    program = program_of(kind)
    operation = replace(program.operations[1], options={**program.operations[1].options, **options})
    return operation, program


@pytest.mark.parametrize(
    ("case", "number"),
    [
        (one(Kind.ADD), 2),
        (one(Kind.CONV_2D), 3),
        (one(Kind.DEPTHWISE_CONV_2D), 3),
        (one(Kind.FULLY_CONNECTED), 4),
        (one(Kind.FULLY_CONNECTED, keep_num_dims=True), 5),
        (one(Kind.HARD_SWISH), 1),
        (one(Kind.LOGISTIC), 2),
        (one(Kind.MUL), 2),
        (one(Kind.PAD), 2),
        (one(Kind.QUANTIZE), 1),
        (one(Kind.RESHAPE), 1),
        (one(Kind.RESIZE_BILINEAR), 3),
        (one(Kind.RESIZE_BILINEAR, half_pixel_centers=False), 2),
        (one(Kind.RESIZE_NEAREST_NEIGHBOR), 2),
        (one(Kind.RESIZE_NEAREST_NEIGHBOR, align_corners=True), 3),
        (one(Kind.TRANSPOSE_CONV), 3),
    ],
)
def test_versions_are_the_lowest_that_do(case: tuple[Operation, Program], number: int) -> None:
    assert version(*case) == number


def test_a_product_that_grows_needs_a_newer_multiplication() -> None:
    make = Maker()
    constant = make.tensor("c", (1, 5), "int8", grid(2.0), np.ones((1, 5), np.int8))
    program = make.program(Kind.MUL, (1, 5), (1, 5), (0.04, 0), ("x", constant))
    assert version(program.operations[1], program) == 3


def test_filters_of_a_part_of_the_channels_need_a_newer_convolution() -> None:
    make = Maker()
    program = make.program(Kind.CONV_2D, (1, 4, 4, 4), (1, 4, 4, 6), (0.1, 0), make.weights((6, 1, 1, 2), 0), padding="VALID")
    assert version(program.operations[1], program) == 6


def test_operators_of_one_kind_and_version_share_a_code(fb: ModuleType) -> None:
    program = program_of(Kind.QUANTIZE)
    codes = read(to_bytes(program), fb).operatorCodes
    assert [(code.builtinCode, code.version) for code in codes] == [
        (fb.BuiltinOperator.QUANTIZE, 1),
        (fb.BuiltinOperator.DEQUANTIZE, 2),
    ]


# What is refused -------------------------------------------------------------------------------------------------------


def without_a_tensor(program: Program) -> Program:
    return replace(program, tensors={name: tensor for name, tensor in program.tensors.items() if name != "weights"})


def with_an_odd_option(program: Program) -> Program:
    first, second, third = program.operations
    return replace(program, operations=(first, replace(second, options={**second.options, "keep_dims": True}), third))


def with_too_few_numbers(program: Program) -> Program:
    return replace(program, tensors={**program.tensors, "bias": replace(program.tensors["bias"], shape=(9,))})


def with_too_many_scales(program: Program) -> Program:
    weights = replace(program.tensors["weights"], grid=per_channel(np.ones(5), 0))
    return replace(program, tensors={**program.tensors, "weights": weights})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_a_tensor, "names weights, and has no such tensor"),
        (with_an_odd_option, "CONV_2D has no option 'keep_dims'"),
        (with_too_few_numbers, "'bias' has shape .9., and its data .6."),
        (with_too_many_scales, "has scales of shape .5."),
    ],
)
def test_a_program_that_is_none_is_refused(spoil: Callable[[Program], Program], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        to_bytes(spoil(program_of(Kind.CONV_2D)))


def regridded(kind: Kind, name: str, scale: float, zero: int) -> Program:
    program = program_of(kind)
    return replace(program, tensors={**program.tensors, name: replace(program.tensors[name], grid=grid(scale, zero))})


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (regridded(Kind.PAD, "y", 0.03, 0), "does not rescale"),
        (regridded(Kind.RELU6, "y", 0.03, 0), "does not rescale"),
        (regridded(Kind.SOFTMAX, "y", 1 / 255, -128), "must have scale 0.00390625"),
        (regridded(Kind.CONV_2D, "bias", 0.1, 0), "the scale of its input times that of its weights"),
        (regridded(Kind.CONV_2D, "weights", 0.1, 4), "must have zero point 0"),
    ],
)
def test_the_specification_is_checked(program: Program, words: str) -> None:
    assert any(words in finding.text for finding in check.findings(to_bytes(program), program))


@pytest.mark.parametrize(("size", "told"), [(3, False), (5, False), (6, True)])
def test_windows_that_xnnpack_has_no_kernel_for_are_told_of(size: int, told: bool) -> None:
    program = program_of(Kind.DEPTHWISE_CONV_2D)
    (operation,) = (each for each in program.operations if each.kind is Kind.DEPTHWISE_CONV_2D)
    weights = program.tensors[operation.inputs[1]]
    wide = replace(weights, shape=(1, size, size, weights.shape[3]), data=None)
    found = check.slow(replace(program, tensors={**program.tensors, weights.name: wide}))
    assert [each.severity for each in found] == (["warning"] if told else [])
    assert not told or f"'{operation.outputs[0]}': {size}x{size}" in found[0].text


# What the file says of itself --------------------------------------------------------------------------------------------

PICTURES = Preprocess(kind="image", channels="rgb", scale=1 / 255, mean=(0.5, 0.25, 0.0), std=(0.5,))


def field(table: Any, number: int) -> int:
    """Where a field of a flatbuffer's table is, by its number; 0 where it is left out."""
    offset = table.Offset(4 + 2 * number)
    return int(offset + table.Pos) if offset else 0


def inner(table: Any, number: int, element: int | None = None) -> Any:
    """The table that a field holds, or one of its vector."""
    from flatbuffers.table import Table

    place = field(table, number)
    if element is not None:
        place = table.Vector(place - table.Pos) + 4 * element
    return Table(table.Bytes, table.Indirect(place))


def text(table: Any, number: int) -> str:
    return bytes(table.String(field(table, number))).decode()


def floats(table: Any, number: int) -> list[float]:
    start, count = table.Vector(field(table, number) - table.Pos), table.VectorLen(field(table, number) - table.Pos)
    return np.frombuffer(table.Bytes, "<f4", count, start).tolist()


def test_metadata_follow_the_published_format() -> None:
    from flatbuffers import encode, packer
    from flatbuffers.table import Table

    make = Maker()
    program = make.program(Kind.MEAN, (1, 6, 5, 3), (1, 3), (0.01, 0), (make.numbers("axes", 1, 2),), keep_dims=False)
    found = metadata.describe(program, PICTURES, ("cat", "dog", "eel"), program.outputs)
    assert found[4:8] == b"M001"
    root = Table(found, encode.Get(packer.uoffset, found, 0))
    assert (text(root, 0), text(root, 7)) == ("one_mean", "1.0.0")
    assert "mean: [0.5, 0.25, 0.0]" in text(root, 1)
    graph = inner(root, 3, 0)
    image = inner(graph, 2, 0)
    assert text(image, 0) == "in"
    content = inner(image, 3)
    properties = inner(content, 1)
    size = inner(properties, 1)
    assert (found[field(content, 0)], found[field(properties, 0)]) == (2, 1), "an image, in RGB"
    assert [int.from_bytes(found[field(size, n) : field(size, n) + 4], "little") for n in (0, 1)] == [5, 6], "width, height"
    unit = inner(image, 4, 0)
    assert found[field(unit, 0)] == 1, "normalization"
    assert floats(inner(unit, 1), 0) == pytest.approx([127.5, 63.75, 0.0])
    assert floats(inner(unit, 1), 1) == pytest.approx([127.5])
    assert floats(inner(image, 5), 0) == pytest.approx([1.0, 1.5, 2.0]), "highest"
    assert floats(inner(image, 5), 1) == pytest.approx([-1.0, -0.5, 0.0]), "lowest"
    labels = inner(inner(graph, 3, 0), 6, 0)
    assert (text(labels, 0), found[field(labels, 2)]) == ("labels.txt", 2)


def test_labels_lie_in_an_archive_behind_the_model() -> None:
    program = program_of(Kind.SOFTMAX)
    plain = to_bytes(program)
    found = metadata.attach(plain, {"labels.txt": metadata.labels_file(("cat", "dog\nand cat"))})
    assert found.startswith(plain)
    assert found == metadata.attach(plain, {"labels.txt": "cat\ndog and cat\n"}), "no time of day in it"
    with zipfile.ZipFile(io.BytesIO(found)) as archive:
        assert archive.read("labels.txt") == b"cat\ndog and cat\n"
    feeds = samples(program)
    for kernels in sessions.kernel_sets():
        answers = [sessions.LiteRtSession(content, program, kernels).run(feeds)["out"] for content in (plain, found)]
        assert np.array_equal(*answers)


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (None, None),
        (Preprocess(kind="array"), None),
        (Preprocess(kind="image", scale=1.0), None),
        (Preprocess(kind="image", scale=1 / 255), ((0.0,), (255.0,))),
        (Preprocess(kind="array", scale=1.0, mean=(3.0,)), ((3.0,), (1.0,))),
    ],
)
def test_normalization_is_said_where_there_is_one(preprocess: Preprocess | None, expected: object) -> None:
    assert metadata.normalization(preprocess) == expected
