"""A .tflite file on every set of kernels: layouts, integers, several samples, what goes wrong; and what Arm's compiler says of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from one_operation import program_of

from conftest import missing
from lowbit.data.preprocess import Preprocess
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.litert import metadata, outline, sessions, vela
from lowbit.export.litert.check import findings
from lowbit.export.litert.sessions import LiteRtSession
from lowbit.export.litert.target import LiteRT
from lowbit.export.litert.timing import BuiltIn, Xnnpack
from lowbit.export.litert.writer import schema, to_bytes
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Kind, Port, Program
from lowbit.export.settings import settings_of
from lowbit.quant.affine import dequantize, from_range
from lowbit.types import Array, TensorInfo, Tuning

KERNELS = (sessions.XNNPACK, sessions.BUILT_IN, sessions.REFERENCE, sessions.MICRO)


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> str:
    if request.param not in sessions.kernel_sets():
        missing(f"kernel set {request.param}")
    return str(request.param)


@pytest.fixture(autouse=True)
def _written() -> None:
    if "ai-edge-litert" not in sessions.versions():
        missing("ai-edge-litert")


def samples(rows: int = 6) -> dict[str, Array]:
    return {"in": np.random.default_rng(1).normal(0, 1.5, (rows, 4, 6, 5)).astype(np.float32)}


def with_integers(program: Program) -> Program:
    """The same, fed and answering with levels."""
    (entry,), (answer,) = program.inputs, program.outputs
    return replace(
        program, operations=program.operations[1:2], inputs=(replace(entry, tensor="x"),), outputs=(replace(answer, tensor="y"),)
    )


def test_samples_come_back_in_the_source_models_layout(kernels: str) -> None:
    program = program_of(Kind.CONCATENATION)
    session = LiteRtSession(to_bytes(program), program, kernels)
    feeds = samples()
    found = session.run(feeds)["out"]
    assert (found.shape, found.dtype) == ((6, 8, 6, 5), np.float32)
    assert found.flags.c_contiguous
    rounded = np.clip(np.round(feeds["in"] / np.float32(0.02)), -125, 130) * np.float32(0.02)
    assert np.abs(found - np.concatenate([rounded, rounded], axis=1)).max() < 1e-5


def test_samples_do_not_touch_each_other(kernels: str) -> None:
    program = program_of(Kind.CONV_2D)
    session = LiteRtSession(to_bytes(program), program, kernels)
    together = session.run(samples())["out"]
    apart = [session.run({"in": samples()["in"][row : row + 1]})["out"][0] for row in (5, 0, 3)]
    assert np.array_equal(together[[5, 0, 3]], apart)
    assert len({answer.tobytes() for answer in together}) == 6
    assert session.run({"in": samples()["in"][:0]})["out"].shape == (0, 6, 3, 3)


def test_integers_are_the_levels_of_what_run_answers(kernels: str) -> None:
    program = program_of(Kind.ADD)
    session = LiteRtSession(to_bytes(program), program, kernels)
    levels, real = session.integers(samples())["out"], session.run(samples())["out"]
    own = program.tensors["y"].grid
    assert own is not None
    assert levels.dtype == np.int8
    assert len(np.unique(levels)) > 50
    assert np.allclose(dequantize(levels, own), real, rtol=0, atol=1e-6)


def test_a_file_of_integers_answers_alike(kernels: str) -> None:
    program = program_of(Kind.DEPTHWISE_CONV_2D)
    inside, outside = program, with_integers(program)
    first, second = (LiteRtSession(to_bytes(each), each, kernels) for each in (inside, outside))
    assert np.array_equal(first.integers(samples())["out"], second.integers(samples())["out"])
    assert np.allclose(first.run(samples())["out"], second.run(samples())["out"], rtol=0, atol=1e-6)


def test_the_bare_call_can_be_measured(kernels: str) -> None:
    program = program_of(Kind.SOFTMAX)
    session = LiteRtSession(to_bytes(program), program, kernels)
    call = session.prepare({"in": np.zeros((1, 10), np.float32)})
    call()
    call()
    assert session.run({"in": np.zeros((1, 10), np.float32)})["out"][0, 0] == pytest.approx(0.1, abs=0.01)


def test_wrong_feeds_are_refused(kernels: str) -> None:
    program = program_of(Kind.CONV_2D)
    session = LiteRtSession(to_bytes(program), program, kernels)
    with pytest.raises(RunError, match="Input 'in' is missing"):
        session.run({})
    with pytest.raises(RunError, match="has no input 'image'"):
        session.run({**samples(), "image": samples()["in"]})
    with pytest.raises(RunError, match="the model wants"):
        session.run({"in": samples()["in"].transpose(0, 2, 3, 1)})
    session.close()
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run(samples())


def test_a_file_that_is_none_is_told_apart(kernels: str) -> None:
    program = program_of(Kind.CONV_2D)
    with pytest.raises(RunError, match=f"does not load on {kernels}"):
        LiteRtSession(b"nothing of the kind", program, kernels)


def test_operators_that_a_kernel_refuses_are_named() -> None:
    """Softmax to a grid that is not 1/256: what the library prints beside its exception is part of the message."""
    program = program_of(Kind.SOFTMAX)
    wrong = replace(program.tensors["y"], grid=program.tensors["x"].grid)
    content = to_bytes(replace(program, tensors={**program.tensors, "y": wrong}))
    with pytest.raises(RunError, match=r"SOFTMAX|output->params"):
        LiteRtSession(content, program, sessions.REFERENCE)


def test_unknown_kernels_are_refused() -> None:
    program = program_of(Kind.CONV_2D)
    with pytest.raises(UsageError, match="Unknown kernel set 'xnpack'"):
        LiteRtSession(to_bytes(program), program, "xnpack")


def test_an_output_without_a_grid_has_no_integers() -> None:
    program = program_of(Kind.CONV_2D)
    real = replace(program, outputs=(Port("out", program.inputs[0].shape, "real", (0, 2, 3, 1)),))
    (kernels, *_) = sessions.kernel_sets()
    session = LiteRtSession(to_bytes(real), real, kernels)
    assert np.array_equal(session.run(samples())["out"], samples()["in"])
    with pytest.raises(ModelError, match="'out' is in floating point and has no levels"):
        session.integers(samples())


# A file on its own -----------------------------------------------------------------------------------------------------


def of_lowbit(program: Program) -> bytes:
    return to_bytes(program, {outline.NAME: outline.of(program)})


@pytest.mark.parametrize("kind", [Kind.CONV_2D, Kind.SOFTMAX, Kind.RESHAPE])
def test_a_file_knows_its_own_ends(kind: Kind, kernels: str) -> None:
    for program in (program_of(kind), with_integers(program_of(kind))):
        content = of_lowbit(program)
        ends = outline.read(content, schema())
        assert (ends.name, ends.inputs, ends.outputs) == (program.name, program.inputs, program.outputs)
        feeds = {"in": np.random.default_rng(2).normal(0, 1, (3, *program.inputs[0].shape[1:])).astype(np.float32)}
        first, second = (LiteRtSession(content, each, kernels) for each in (program, ends))
        assert np.array_equal(first.run(feeds)["out"], second.run(feeds)["out"])
        assert np.array_equal(first.integers(feeds)["out"], second.integers(feeds)["out"])


def test_somebody_elses_file_is_refused() -> None:
    with pytest.raises(RunError, match="was not written by lowbit"):
        outline.read(to_bytes(program_of(Kind.CONV_2D), {"theirs": b"{}"}), schema())


@pytest.mark.parametrize("runtime", [Xnnpack(), BuiltIn()], ids=lambda runtime: runtime.name)
def test_a_race_can_time_it(runtime: Xnnpack, tmp_path: Path) -> None:
    program = program_of(Kind.CONV_2D)
    (tmp_path / "model.tflite").write_bytes(of_lowbit(program))
    session = runtime.open(tmp_path / "model.tflite", Tuning(threads=1), 1)
    assert runtime.describe()["version"] == runtime.version() == sessions.versions()["ai-edge-litert"]
    answers = session.prepare(samples(1))()
    assert isinstance(answers, list)
    assert np.array_equal(answers[0].transpose(0, 3, 1, 2), session.run(samples(1))["out"])
    eight = runtime.open(tmp_path / "model.tflite", Tuning(threads=1), 8)
    answers = eight.prepare(samples(8))()
    assert isinstance(answers, list)
    assert np.array_equal(answers[0].transpose(0, 3, 1, 2), eight.run(samples(8))["out"][7:]), "one call a sample; the last one's answers"
    with pytest.raises(RunError, match="one stream"):
        runtime.open(tmp_path / "model.tflite", Tuning(streams=2), 1)
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(RunError, match=r"no \.tflite file"):
        runtime.open(tmp_path / "model.onnx")


def neutral() -> Neutral:
    """A model of one ReLU, its input and output on grids."""
    import onnx_ir as ir

    x, y = (ir.Value(name=name, shape=ir.Shape(["n", 2, 3, 3]), type=ir.TensorType(ir.DataType.FLOAT)) for name in ("image", "scores"))
    node = ir.Node("", "Relu", [x], outputs=[y], name="relu")
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 21}, name="one"), ir_version=10)
    grids = {"image": from_range(-1.0, 1.0, "uint8", symmetric=False), "scores": from_range(0.0, 1.0, "uint8", symmetric=False)}
    info = {name: TensorInfo(name, ("n", 2, 3, 3), "float32") for name in grids}
    steps = Preprocess(kind="image", channels="rgb", scale=1 / 255)
    ranges = {"image": (-1.0, 1.0), "scores": (0.0, 1.0)}
    return Neutral("one", model, {}, grids, ranges, {}, (info["image"],), (info["scores"],), steps, ("a", "b", "c"), "int8")


def test_the_target_writes_a_folder(tmp_path: Path) -> None:
    target = LiteRT()
    artifact = target.write(neutral(), tmp_path, settings_of(target, ()))
    assert [file.name for file in artifact.files] == ["model.tflite", "labels.txt", "preprocess.yaml"]
    assert (tmp_path / "labels.txt").read_text() == "a\nb\nc\n"
    assert artifact.facts["file_bytes"] == artifact.size_bytes == (tmp_path / "model.tflite").stat().st_size
    assert artifact.facts["ai_edge_litert"] == target.version()
    assert target.check(artifact) == []
    image = np.linspace(-1, 1, 18, dtype=np.float32).reshape(1, 2, 3, 3)
    for kernels in target.kernel_sets(artifact):
        answer = target.open(replace(artifact, state=None), kernels).run({"image": image})["scores"]
        assert np.abs(answer - np.maximum(image, 0)).max() < 0.01, kernels
    spoilt = bytearray(artifact.main.read_bytes())
    spoilt[spoilt.index(np.float32(2 / 255).tobytes())] ^= 1
    assert isinstance(artifact.state, Program)
    assert len(findings(bytes(spoilt), artifact.state)) == 1
    assert metadata.NAME.encode() in spoilt
    with pytest.raises(RunError, match="was not written in this run"):
        target.check(replace(artifact, state=None))


# Memory ----------------------------------------------------------------------------------------------------------------


def test_the_arena_holds_what_is_alive_at_once() -> None:
    if sessions.MICRO not in sessions.kernel_sets():
        missing("tflite-micro")
    program = program_of(Kind.CONCATENATION)
    found = sessions.arena(to_bytes(program), program)
    assert found["total"] == found["head"] + found["tail"]
    x, y, answer = 120, 240, 960
    assert y + answer <= found["head"] <= 2 * (x + y + answer)
    assert sessions.arena(b"nothing of the kind", program) == {}


def test_compilers_estimate_says_what_it_is() -> None:
    if vela.version() is None:
        missing("ethos-u-vela")
    program = program_of(Kind.CONV_2D)
    found = vela.estimate(to_bytes(program))
    assert (found.operators, found.on_npu) == (3, 1)
    assert any("QUANTIZE" in reason for reason in found.reasons)
    assert found.sram_bytes >= 120 + 54, "its input and its output"
    assert found.flash_bytes >= 216, "its weights"
    assert found.milliseconds > 0
    facts = found.facts()
    assert str(facts["ethos_u"]).startswith("compiler estimate: vela ")
    assert all("estimated" in name for name in facts if name != "ethos_u")
    assert facts["ethos_u_estimated_npu_share"] == pytest.approx(1 / 3, abs=1e-3)


def test_estimates_refuse_what_they_do_not_know() -> None:
    if vela.version() is None:
        missing("ethos-u-vela")
    with pytest.raises(UsageError, match="no Ethos-U configuration"):
        vela.estimate(b"", "ethos-u7")
    with pytest.raises(ModelError, match="vela refuses the file"):
        vela.estimate(b"nothing of the kind")
