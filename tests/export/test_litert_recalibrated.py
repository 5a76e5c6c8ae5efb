"""The other way into LiteRT: what is decided without the converter, and the whole way where its environment is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import transformer_case
from by_hand import Case, case
from one_operation import program_of
from target_case import INPUT, OUTPUT
from transformer_case import CLASSES, LOGITS, MASK, STATES, TOKENS, WIDTH, texts

from conftest import missing
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Artifact
from lowbit.export.litert import opening, outline, sessions
from lowbit.export.litert.recalibrated import census, ends, program, recipes
from lowbit.export.litert.recalibrated.ends import End, Ends
from lowbit.export.litert.recalibrated.environment import environment, last_words
from lowbit.export.litert.recalibrated.session import RecalibratedSession
from lowbit.export.litert.sessions import LiteRtSession
from lowbit.export.litert.target import LiteRT
from lowbit.export.litert.timing import Xnnpack
from lowbit.export.litert.writer import schema, to_bytes
from lowbit.export.program.program import Kind, Operation, Port, Program, Tensor
from lowbit.export.settings import settings_of
from lowbit.types import Array, TensorInfo, Tuning

CONVERTER = "litert-torch's environment (LOWBIT_LITERT_TORCH_PYTHON or .venv-litert-torch)"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return transformer_case.classifier(tmp_path / "classifier.onnx")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the converter's environment."""
    monkeypatch.delenv("LOWBIT_LITERT_TORCH_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    if environment() is not None:
        pytest.skip("litert-torch is installed beside lowbit")


def need_litert() -> None:
    if "ai-edge-litert" not in sessions.versions():
        missing("ai-edge-litert")


def on_onnxruntime(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((LOGITS, STATES), session.run([LOGITS, STATES], feeds), strict=True))


# Decisions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "samples", "convolutions", "recipe"),
    [
        ("auto", True, True, "static"),
        ("auto", True, False, "dynamic"),
        ("auto", False, True, "dynamic"),
        ("static", True, False, "static"),
        ("dynamic", True, True, "dynamic"),
    ],
)
def test_the_recipe_follows_from_the_model_and_the_data(wish: str, samples: bool, convolutions: bool, recipe: str) -> None:
    assert recipes.recipe_of(wish, samples=samples, convolutions=convolutions) == recipe


def test_ranges_are_not_measured_on_nothing() -> None:
    with pytest.raises(UsageError, match="there are none"):
        recipes.recipe_of("static", samples=False, convolutions=True)


def test_samples_are_asked_for_where_they_are_needed(text: Path, tmp_path: Path) -> None:
    tokens, images = transformer_case.neutral(text), case(tmp_path).source
    given = settings_of(LiteRT(), ())
    assert recipes.wanted(tokens, given) == 1  # for the size of the open axis
    assert recipes.wanted(tokens, {**given, "length": 8}) == 0
    assert recipes.wanted(tokens, {**given, "recipe": "static"}) == recipes.SAMPLES
    assert recipes.wanted(images, given) == recipes.SAMPLES
    sixteen = replace(images, inputs=(replace(images.inputs[0], shape=(16, *images.inputs[0].shape[1:])),))
    assert recipes.wanted(sixteen, given) == 112


def test_open_axes_get_a_size() -> None:
    inputs = (TensorInfo("a", ("N", "T"), "int64"), TensorInfo("b", ("N", 3), "float32"))
    assert program.sizes_of(inputs, {}, 12) == {("a", 1): 12}
    assert program.sizes_of(inputs, {"a": np.zeros((5, 9)), "b": np.zeros((5, 3))}, 0) == {("a", 1): 9}
    assert program.sizes_of(inputs[1:], {}, 0) == {}
    with pytest.raises(ModelError, match=r"'a' axis 1 has any size") as error:
        program.sizes_of(inputs, {}, 0)
    assert "--set length=" in str(error.value.hint)
    with pytest.raises(UsageError, match="length=-3 is no size"):
        program.sizes_of(inputs, {}, -3)


def test_samples_lie_as_the_file_takes_them() -> None:
    image = End("x", "float64", (1, 3, 2, 4), {}, program.CHANNELS_LAST)
    values = np.arange(48.0).reshape(2, 3, 2, 4)
    found = program.laid(values, image, np.dtype(np.float32))
    assert (found.shape, found.dtype) == ((2, 2, 4, 3), np.float32)
    assert np.array_equal(found[1, 1, 2], values[1, :, 1, 2])
    tokens = End("t", "int64", (1, 5), {1: "T"})
    assert np.array_equal(program.laid(np.array([[1, 2, 3]]), tokens, np.dtype(np.int32)), [[1, 2, 3, 0, 0]])
    with pytest.raises(ModelError, match=r"shape \[6\]; \[5\] was asked for"):
        program.laid(np.zeros((1, 6)), tokens, np.dtype(np.int32))


def test_the_last_error_of_a_program_is_its_word() -> None:
    assert (
        last_words("a\nRuntimeError: no lowering for aten.foo\n\n  Original traceback:\nNone\n") == "RuntimeError: no lowering for aten.foo"
    )
    assert last_words("Killed\n") == "Killed"
    assert last_words("") == "it said nothing"


# A file from elsewhere -------------------------------------------------------------------------------------------------


def converters(made: Program) -> bytes:
    """The program's file as the converter would name its ends."""
    ports = {"inputs": made.inputs, "outputs": made.outputs}
    named = {
        key: tuple(replace(port, name=f"{'args' if key == 'inputs' else 'output'}_{k}") for k, port in enumerate(part))
        for key, part in ports.items()
    }
    return to_bytes(replace(made, **named))


def of_program(made: Program) -> tuple[bytes, Ends]:
    sides = [tuple(End(port.name, "float32", port.shape, {}, port.permutation) for port in part) for part in (made.inputs, made.outputs)]
    told = Ends(made.name, "static", *sides)
    return ends.dressed(converters(made), told, {"NOTE": b"hello"}, schema()), told


def test_a_file_keeps_its_ends_and_answers_as_before() -> None:
    need_litert()
    made = program_of(Kind.CONV_2D)
    content, told = of_program(made)
    assert ends.read(content, schema()) == told
    feeds = {"in": np.random.default_rng(3).normal(0, 1.5, (5, *made.inputs[0].shape[1:])).astype(np.float32)}
    session = opening.opened(content, sessions.REFERENCE)
    assert isinstance(session, RecalibratedSession)
    found = session.run(feeds)["out"]
    assert np.array_equal(found, LiteRtSession(to_bytes(made), made, sessions.REFERENCE).run(feeds)["out"])
    assert session.integers(feeds) is None  # it answers in real numbers, on grids of its own
    assert session.inputs == (TensorInfo("in", (None, *made.inputs[0].shape[1:]), "float32"),)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run(feeds)


def test_levels_at_both_ends_are_rounded_and_read() -> None:
    need_litert()
    made = program_of(Kind.CONV_2D)
    whole = LiteRtSession(to_bytes(made), made, sessions.REFERENCE)
    (entry,), (answer,) = made.inputs, made.outputs
    inner = replace(
        made, operations=made.operations[1:2], inputs=(replace(entry, tensor="x"),), outputs=(replace(answer, tensor="y"),)
    )  # fmt: skip
    session = opening.opened(of_program(inner)[0], sessions.REFERENCE)
    feeds = {"in": np.random.default_rng(4).normal(0, 1.5, (3, *entry.shape[1:])).astype(np.float32)}
    assert np.array_equal(session.run(feeds)["out"], whole.run(feeds)["out"])
    levels = session.integers(feeds)
    assert levels is not None
    assert levels["out"].dtype == np.int8
    assert np.array_equal(levels["out"], whole.integers(feeds)["out"])


def test_the_two_ways_do_not_take_each_other_s_files() -> None:
    need_litert()
    made = program_of(Kind.CONV_2D)
    own = to_bytes(made, {outline.NAME: outline.of(made)})
    assert ends.read(own, schema()) is None
    assert isinstance(opening.opened(own, sessions.REFERENCE), LiteRtSession)
    with pytest.raises(RunError, match="not written by lowbit"):
        outline.read(of_program(made)[0], schema())
    with pytest.raises(RunError, match="not written by lowbit"):
        opening.opened(converters(made), sessions.REFERENCE)


def test_a_race_can_time_it(tmp_path: Path) -> None:
    need_litert()
    made = program_of(Kind.CONV_2D)
    (tmp_path / "model.tflite").write_bytes(of_program(made)[0])
    session = Xnnpack().open(tmp_path / "model.tflite", Tuning(threads=1), 1)
    feeds = {"in": np.ones((1, *made.inputs[0].shape[1:]), np.float32)}
    answers = session.prepare(feeds)()
    assert isinstance(answers, list)
    assert np.array_equal(answers[0].transpose(0, 3, 1, 2), session.run(feeds)["out"])


def rounding(size: int) -> tuple[bytes, Ends]:
    """A file that rounds [1, T], with T open in the source."""
    made = program_of(Kind.SOFTMAX)
    grid = made.tensors["x"].grid
    tensors = {name: Tensor(name, (1, size), "float32") for name in ("real", "answer")} | {"x": Tensor("x", (1, size), "int8", grid)}
    steps = (Operation(Kind.QUANTIZE, ("real",), ("x",)), Operation(Kind.DEQUANTIZE, ("x",), ("answer",)))
    small = Program("rounding", tensors, steps, (Port("in", (1, size), "real"),), (Port("out", (1, size), "answer"),))
    told = Ends("rounding", "dynamic", (End("in", "float32", (1, size), {1: "T"}),), (End("out", "float32", (1, size), {1: "T"}),))
    return ends.dressed(converters(small), told, {}, schema()), told


def test_shorter_samples_are_filled_up_and_answers_cut() -> None:
    need_litert()
    session = opening.opened(rounding(6)[0], sessions.REFERENCE)
    values = np.array([[0.5, -0.25, 1.0, 0.75], [0.1, 0.2, 0.3, 0.4]], np.float32)
    found = session.run({"in": values})["out"]
    assert found.shape == (2, 4)
    assert np.abs(found - values).max() <= 0.0101
    assert session.run({"in": np.ones((1, 6), np.float32)})["out"].shape == (1, 6)
    with pytest.raises(RunError, match="takes 6 along axis 1 of 'in', and a sample has 7") as error:
        session.run({"in": np.ones((1, 7), np.float32)})
    assert "--set length=7" in str(error.value.hint)


def behind(content: bytes) -> bytes:
    """The file with its constants behind the flatbuffer, as ai-edge-quantizer writes it."""
    import flatbuffers

    model = schema().ModelT.InitFromObj(schema().Model.GetRootAs(content, 0))
    kept = [b"" if buffer.data is None else bytes(buffer.data) for buffer in model.buffers]
    start, packed = 1 << 20, b""
    for _ in range(2):  # the first time for the size of the flatbuffer
        place = start
        for buffer, data in zip(model.buffers, kept, strict=True):
            buffer.data, buffer.offset, buffer.size = None, place if data else 0, len(data)
            place += len(data)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        packed = bytes(builder.Output())
        start = len(packed)
    return packed + b"".join(kept)


def test_constants_behind_the_flatbuffer_are_kept() -> None:
    need_litert()
    made = program_of(Kind.CONV_2D)
    content, told = of_program(made)
    assert ends.dressed(behind(converters(made)), told, {"NOTE": b"hello"}, schema()) == content


def test_operators_are_counted_by_what_they_compute_in() -> None:
    need_litert()
    found = census.of(to_bytes(program_of(Kind.CONV_2D)), schema())
    assert (found.operations, found.real, found.hybrid, found.strange) == (3, {}, {}, ())
    assert found.words() == ""
    dense = program_of(Kind.FULLY_CONNECTED)
    rounding_itself = Operation(Kind.FULLY_CONNECTED, ("real", "weights"), ("answer",))
    found = census.of(
        to_bytes(replace(dense, operations=(rounding_itself, Operation(Kind.ADD, ("answer", "answer"), ("answer",))))), schema()
    )
    assert (found.real, found.hybrid) == ({"ADD": 1}, {"FULLY_CONNECTED": 1})
    mixed = census.Census(9, {"ADD": 4, "MUL": 1}, {"FULLY_CONNECTED": 3}, ())
    assert mixed.words().startswith("Of 9 operators 3 FULLY_CONNECTED have integer weights")
    assert "4 ADD, 1 MUL compute real numbers" in mixed.words()


# What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("alone")
def test_what_the_table_lacks_is_refused_with_both_ways_out(text: Path, tmp_path: Path) -> None:
    need_litert()
    source = transformer_case.neutral(text)
    with pytest.raises(ModelError, match="'tokens' is int64") as error:
        LiteRT().write(source, tmp_path, settings_of(LiteRT(), ()))
    assert "litert-torch" in str(error.value.hint)
    assert "scales of its own" in str(error.value.hint)
    with pytest.raises(UsageError, match="is not installed"):
        LiteRT().write(source, tmp_path, settings_of(LiteRT(), ("way=recalibrated",)))
    assert LiteRT().samples_wanted(source, settings_of(LiteRT(), ())) == 0


@pytest.mark.usefixtures("converter")
def test_where_both_ways_end_both_are_told(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'tokens' is int64.* Nor can it be recalibrated: .* has any size") as error:
        LiteRT().write(transformer_case.neutral(text), tmp_path, settings_of(LiteRT(), ()))
    assert "--set length=" in str(error.value.hint)


def test_an_npu_is_not_promised(text: Path, tmp_path: Path) -> None:
    settings = settings_of(LiteRT(), ("way=recalibrated", "ethos_u=ethos-u55-128"))
    with pytest.raises(UsageError, match="integers alone"):
        LiteRT().write(transformer_case.neutral(text), tmp_path, settings)


# The whole way ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converter() -> None:
    need_litert()
    if environment() is None:
        missing(CONVERTER)


@pytest.fixture(scope="module")
def written(converter: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:  # noqa: ARG001  # asked for
    folder = tmp_path_factory.mktemp("recalibrated")
    text = transformer_case.classifier(folder / "classifier.onnx")
    (folder / "out").mkdir()
    return LiteRT().write(transformer_case.neutral(text), folder / "out", settings_of(LiteRT(), ("length=12",))), text


def test_a_transformer_goes_by_way_of_the_converter(written: tuple[Artifact, Path]) -> None:
    artifact, _ = written
    assert (artifact.facts["way"], artifact.facts["recipe"], artifact.facts["length"]) == ("recalibrated", "dynamic_wi8_afp32", 12)
    assert int(artifact.facts["hybrid_operations"]) >= 4
    assert artifact.size_bytes < 0.6 * int(artifact.facts["float_file_bytes"])
    assert artifact.program is None
    assert artifact.words.startswith("recalibrated")
    assert any(note.startswith("Recalibrated: litert-torch") for note in artifact.notes)
    assert any("'tokens' is int64" in note for note in artifact.notes), "why the table's way was not taken"
    assert any("[1, 12]" in note and "zeros" in note for note in artifact.notes)
    assert all(kernels.startswith("recalibrated: ") for kernels in LiteRT().kernel_sets(artifact))
    assert set(LiteRT().timed(artifact)) == {"recalibrated: xnnpack", "recalibrated: built-in"}
    content = artifact.main.read_bytes()
    assert "GELU" in census.of(content, schema()).real, "one kernel, not a dozen"


def test_it_answers_as_the_model_does(written: tuple[Artifact, Path]) -> None:
    artifact, text = written
    asked = texts(64, 10, seed=3)  # two fewer than the file takes
    full = on_onnxruntime(text, asked)
    for kernels in LiteRT().kernel_sets(artifact):
        session = LiteRT().open(artifact, kernels)
        found = session.run(asked)
        assert session.integers({name: values[:1] for name, values in asked.items()}) is None
        session.close()
        assert found[LOGITS].shape == (64, CLASSES)
        assert found[STATES].shape == (64, 10, WIDTH)
        assert (found[LOGITS].argmax(1) == full[LOGITS].argmax(1)).mean() >= 0.95
        assert np.abs(found[LOGITS] - full[LOGITS]).max() < 0.05 * np.ptp(full[LOGITS])
        real = asked[MASK].astype(bool)
        assert np.abs(found[STATES] - full[STATES])[real].max() < 0.1 * np.ptp(full[STATES])


def test_the_signature_has_the_source_s_names(written: tuple[Artifact, Path]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(written[0].main), num_threads=1).get_signature_runner("serving_default")
    asked = {name: values[:1].astype(np.int32) for name, values in texts(1, 12).items()}
    assert set(asked) == {TOKENS, MASK}
    assert set(runner(**asked)) == {LOGITS, STATES}


@pytest.mark.usefixtures("converter")
def test_a_static_file_is_integers_throughout(tmp_path: Path) -> None:
    made: Case = case(tmp_path)
    source = replace(made.source, samples={INPUT: made.asked})
    settings = settings_of(LiteRT(), ("way=recalibrated", "float_output=false"))
    artifact = LiteRT().write(source, tmp_path, settings)
    assert (artifact.facts["recipe"], artifact.facts["calibration_samples"]) == ("static_wi8_ai8", len(made.asked))
    assert (artifact.facts["float_operations"], artifact.facts["hybrid_operations"]) == (0, 0)
    assert LiteRT().check(artifact) == []
    session = LiteRT().open(artifact, "recalibrated: xnnpack")
    found, levels, ours = session.run({INPUT: made.asked})[OUTPUT], session.integers({INPUT: made.asked}), made.answers()
    session.close()
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.9
    assert np.abs(found - ours).max() < 0.1 * np.ptp(ours)
    assert levels is not None
    assert levels[OUTPUT].dtype == np.int8
    assert np.unique(levels[OUTPUT]).size == np.unique(found).size
