"""A bundle with real models: load it, run it, and be told kindly when something is wrong with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_examples import BASELINE, MODEL, make, measurements

from lowbit.bundle.bundle import Bundle, tuning_for
from lowbit.bundle.manifest import file_entries, write_manifest
from lowbit.data.preprocess import Preprocess
from lowbit.errors import DataError, LowbitError, ModelError, RunError, UsageError
from lowbit.runtimes import onnxruntime_cpu, openvino_cpu
from lowbit.types import Candidate, TensorInfo, Tuning
from small_models import cnn, cnn_qdq, images, reference

CHOSEN = "int8-static-mse@onnxruntime"
FIXED = Tuning(threads=1, fixed_shape=True)
STEPS = Preprocess(
    kind="image", resize=None, crop=None, channels="rgb", scale=1 / 255, mean=(0.5,), std=(0.5,), layout="nchw", dtype="float32"
)


def write_bundle(folder: Path, runtime: str = "onnxruntime", preprocess: bool = True, batch: int | str = "N") -> Path:
    """A bundle whose baseline is the small CNN and whose chosen artifact is its QDQ form (the FP32 one for a fixed batch)."""
    for name in ("model", "baseline"):
        (folder / name).mkdir(parents=True)
    cnn_qdq(folder / "model" / "model.onnx") if batch == "N" else cnn(folder / "model" / "model.onnx", batch)
    cnn(folder / "baseline" / "model.onnx", batch)
    if preprocess:
        (folder / "preprocess.yaml").write_text(STEPS.to_yaml())
    chosen = Candidate(
        f"int8-static-mse@{runtime}", "int8-static-mse", runtime, "int8", FIXED, measurements=measurements(2.0, tuning=FIXED), artifact=None
    )
    manifest = make(
        chosen.id,
        "ship",
        ("Test data.",),
        (),
        model=replace(MODEL, inputs=(TensorInfo("input.1", (batch, 3, 8, 8), "float32"),)),
        baseline=replace(BASELINE, tuning=Tuning(threads=1)),
        candidates=(chosen,),
        preprocess="preprocess.yaml" if preprocess else None,
        files=file_entries(folder, ["model", "baseline", "preprocess.yaml"]),
    )
    write_manifest(manifest, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "plain")


def test_three_lines_run_it(folder: Path) -> None:
    session = Bundle.load(folder).session()
    outputs = session.run(images(5))
    assert list(outputs) == ["logits"]
    expected = reference(folder / "model" / "model.onnx", {"input.1": images(5)})["logits"]
    np.testing.assert_allclose(outputs["logits"], expected, atol=0.021)
    assert (session.runtime, session.tuning) == ("onnxruntime", Tuning(threads=1))


def test_an_array_a_dict_and_a_wider_type_say_the_same(folder: Path) -> None:
    with Bundle.load(folder).session() as session:
        plain = session.run(images(2))["logits"]
        assert (session.run({"input.1": images(2)})["logits"] == plain).all()
        assert (session.run(images(2).astype(np.float64))["logits"] == plain).all()
        with pytest.raises(RunError, match="is uint8; the model wants float32"):
            session.run(np.zeros((2, 3, 8, 8), np.uint8))
        with pytest.raises(RunError, match="no input 'pixels'"):
            session.run({"pixels": images(2)})
    with pytest.raises(RunError):
        session.run(images(2))


def test_the_bundles_own_preprocessing_is_applied(folder: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), np.uint8)
    ready = ((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    bundle = Bundle.load(folder)
    expected = bundle.session().run(ready)["logits"]
    raw = [Image.fromarray(one) for one in pixels]
    np.testing.assert_allclose(bundle.session().predict(raw)["logits"], expected, atol=0.021)
    np.testing.assert_allclose(bundle.session(preprocess=True).run(raw)["logits"], expected, atol=0.021)
    assert bundle.session().predict(raw[0])["logits"].shape == (1, 10)
    with pytest.raises(DataError, match="no sample"):
        bundle.session().predict([])


def test_a_model_with_a_fixed_batch_predicts_any_number_of_samples(tmp_path: Path) -> None:
    bundle = Bundle.load(write_bundle(tmp_path / "fixed", batch=2))
    pixels = np.random.default_rng(4).integers(0, 256, (5, 8, 8, 3), np.uint8)
    found = bundle.session(candidate=BASELINE.id).predict(list(pixels))["logits"]
    ready = ((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    file = bundle.folder / "baseline" / "model.onnx"
    expected = np.concatenate([reference(file, {"input.1": part})["logits"] for part in (ready[:2], ready[2:4], ready[[4, 4]])])[:5]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_preprocessing_raw_samples_are_refused(tmp_path: Path) -> None:
    bundle = Bundle.load(write_bundle(tmp_path / "bare", preprocess=False))
    assert bundle.preprocess is None
    with pytest.raises(UsageError, match="no preprocessing"):
        bundle.session(preprocess=True)
    with pytest.raises(UsageError, match="no preprocessing"):
        bundle.session().predict(np.zeros((8, 8, 3), np.uint8))


def test_the_baseline_runs_beside_what_ships(folder: Path) -> None:
    bundle = Bundle.load(folder)
    outputs = bundle.session(candidate="fp32@onnxruntime").run(images(4))["logits"]
    np.testing.assert_allclose(outputs, reference(folder / "baseline" / "model.onnx", {"input.1": images(4)})["logits"], atol=1e-4)
    with pytest.raises(UsageError, match="Unknown candidate 'fp32@openvino'"):
        bundle.session(candidate="fp32@openvino")


def test_a_missing_runtime_is_replaced_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(write_bundle(tmp_path / "away", runtime="openvino"))
    monkeypatch.setattr(openvino_cpu.OpenVinoCpu, "version", lambda _: None)
    with pytest.warns(UserWarning, match="Runtime 'openvino' is not installed. Running on onnxruntime instead") as caught:
        session = bundle.session()
    assert Path(caught[0].filename).name == Path(__file__).name
    assert (session.runtime, session.tuning) == ("onnxruntime", Tuning())
    assert session.run(images(1))["logits"].shape == (1, 10)
    with pytest.raises(UsageError, match="Runtime 'openvino' is not installed"):
        bundle.session(runtime="openvino")
    with pytest.raises(UsageError, match="Unknown runtime 'openvin'"):
        bundle.session(runtime="openvin")


def test_without_any_runtime_there_is_an_error_not_a_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cpu.OnnxRuntimeCpu, "version", lambda _: None)
    bundle = Bundle.load(folder)
    with pytest.raises(UsageError, match="'onnxruntime' is not installed"):
        bundle.session()


def test_a_known_batch_size_gets_the_tuning_measured_for_it(folder: Path) -> None:
    chosen = Bundle.load(folder).manifest.chosen
    assert tuning_for(chosen, None) == Tuning(threads=1, fixed_shape=False)
    assert tuning_for(chosen, 8) == FIXED
    assert tuning_for(chosen, 5) == FIXED
    session = Bundle.load(folder).session(batch=8)
    assert session.run(images(8))["logits"].shape == (8, 10)


def test_loading_says_what_is_wrong_with_the_files(folder: Path, tmp_path: Path) -> None:
    def refused(name: str, text: str, change: object, verify: bool = True) -> None:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        assert callable(change)
        change(copy / "model" / "model.onnx")
        with pytest.raises(LowbitError, match=text) as caught:
            Bundle.load(copy, verify=verify)
        assert isinstance(caught.value, ModelError)
        assert caught.value.hint == "Copy the whole folder again."

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    refused("gone", "lacks model/model.onnx", Path.unlink)
    refused("short", "model/model.onnx has 10 bytes, not", lambda file: file.write_bytes(b"0123456789"), verify=False)
    refused("flipped", "its digest differs", flip)


def test_a_pruned_artifact_is_named(tmp_path: Path) -> None:
    bundle = Bundle.load(write_bundle(tmp_path / "pruned"))
    assert bundle.decision.chosen == bundle.chosen.id == CHOSEN
    manifest = bundle.manifest.model_copy(update={"decision": bundle.manifest.decision.model_copy(update={"chosen": BASELINE.id})})
    with pytest.raises(UsageError, match=f"artifact of '{CHOSEN}' is not in this bundle"):
        Bundle(bundle.folder, manifest).session(candidate=CHOSEN)
