"""A challenger from recent inputs: what is used for what, what is refused, and one real run by each way to judge."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit.bundle.bundle import Bundle
from lowbit.errors import DataError, UsageError
from lowbit.monitoring.samples import Redaction, Sample
from lowbit.monitoring.store import Monitoring
from lowbit.pipeline.recalibrate import HELD, LABELLED, LEAST, MOST, Recalibrated, divide, options_of, planned, recalibrate, recipe_of
from lowbit.types import Array
from small_models import cnn, images

INPUT = "input.1"
NOTHING = Redaction()


@settings(deadline=None)
@given(st.integers(LEAST, 2_000), st.floats(0, 1), st.floats(0, 0.3), st.booleans())
def test_no_sample_has_two_roles(n: int, labelled: float, seen: float, judged: bool) -> None:
    rng = np.random.default_rng(n)
    hashes = rng.permutation(10 * n)[:n].astype(np.uint64)
    known, old = rng.random(n) < labelled, (rng.random(n) < seen) & judged
    if n - old.sum() < LEAST:
        return
    parts = divide(hashes, known, old, judged=judged)
    apart = set(parts.apart.tolist())
    assert not set(parts.calibrate.tolist()) & (apart | set(parts.judge.tolist()))
    assert not old[parts.calibrate].any()
    assert 0 < len(parts.calibrate) <= MOST
    assert len(parts.apart) >= min(n, LEAST) // HELD - int(old.sum())
    if judged:
        assert not len(parts.judge)
    elif known.sum() >= LABELLED:
        assert known[parts.judge].all()
        assert len(parts.judge) >= LABELLED // 2
    else:
        assert abs(len(parts.judge) - n / 2) <= 1
    again = divide(hashes[::-1], known[::-1], old[::-1], judged=judged)
    for role in ("calibrate", "judge", "apart"):
        now, before = hashes[::-1][getattr(again, role)], hashes[getattr(parts, role)]
        assert set(now.tolist()) == set(before.tolist()), "whatever order they come in"


@pytest.mark.parametrize(("labelled", "judged"), [(0, False), (400, False), (0, True)])
def test_those_that_calibrate_are_of_all_times(labelled: int, judged: bool) -> None:
    """More samples than calibrate, in the order in which they came: the newest have to be among those that do."""
    hashes = np.random.default_rng(0).permutation(2_000).astype(np.uint64)
    parts = divide(hashes, np.arange(2_000) < labelled, np.zeros(2_000, bool), judged=judged)
    assert len(parts.calibrate) == MOST
    later = np.mean(parts.calibrate >= 1_200)
    assert later == pytest.approx(800 / (2_000 - labelled), abs=0.08)


def test_too_few_are_refused() -> None:
    with pytest.raises(DataError, match=f"63 different recent samples; at least {LEAST}"):
        divide(np.arange(63, dtype=np.uint64), np.zeros(63, bool), np.zeros(63, bool), judged=False)


@dataclass(frozen=True)
class Served:
    """A real bundle of a static INT8, the samples that it was made with, raw and as the model was fed, and later ones, darker."""

    bundle: Path
    data: dict[str, Array]
    fed: Array
    recent: Array
    labels: Array


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, short_timing: None) -> Served:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("served")
    model = cnn(folder / "cnn.onnx")
    pixels = np.round(255 * (images(1_300, seed=3) + 1) / 2).astype(np.uint8)
    x = (pixels.astype(np.float32) / 255 - 0.5) / 0.5  # what the steps below make of them
    steps = folder / "steps.yaml"
    steps.write_text(
        "schema: 1\nkind: image\nresize: 8\ncrop: [8, 8]\nchannels: rgb\nscale: 1/255\nmean: [0.5]\nstd: [0.5]\nlayout: nchw\n"
    )
    from onnxruntime import InferenceSession

    labels = InferenceSession(str(model)).run(None, {INPUT: x})[0].argmax(axis=1)
    data = {INPUT: pixels[:600].transpose(0, 2, 3, 1).copy(), "labels": labels[:600]}
    lowbit.optimize(
        model,
        data,
        out=folder / "bundle",
        preprocess=steps,
        recipes=("int8-static-minmax",),
        runtimes=("onnxruntime",),
        max_drop="20%",
        batch=(1,),
        qat="never",
        rounds=3,
    )
    return Served(folder / "bundle", data, x[:600], 0.4 * x[600:] - 0.3, labels[600:])


def kept(folder: Path, served: Served, n: int, *, labels: int = 0, redaction: Redaction = NOTHING, model: str = "cnn") -> Path:
    now = time.time()
    with Monitoring(folder) as state:
        rows = (Sample(model, "v1", f"r{i}", now - n + i, {INPUT: served.recent[i]}) for i in range(n))
        state.samples.offer(rows, redaction)
        for i in range(labels):
            state.labels.label(f"r{i}", int(served.labels[i]))
    return folder


@pytest.fixture(scope="module")
def shipped(served: Served) -> Served:
    """The same with INT8 as what ships, whatever the times said."""
    import json

    file = served.bundle / "bundle.json"
    document = json.loads(file.read_text())
    int8 = next(each for each in document["candidates"] if each["recipe"] == "int8-static-minmax" and each["artifact"])
    document["decision"]["chosen"] = int8["id"]
    document["model"]["artifact"] = int8["artifact"]
    import hashlib

    artifact = served.bundle / int8["artifact"]
    entry = {"path": int8["artifact"], "sha256": hashlib.sha256(artifact.read_bytes()).hexdigest(), "size_bytes": artifact.stat().st_size}
    document["files"] = [*(each for each in document["files"] if each["path"] != entry["path"]), entry]
    file.write_text(json.dumps(document))
    return served


def again(shipped: Served, state: Path, out: Path, **more: object) -> Recalibrated:
    return recalibrate(shipped.bundle, state, out=out, **more)  # type: ignore[arg-type]


def ranges(bundle: Path) -> tuple[float, float]:
    from lowbit.compress.calibrate import CalibrationStats

    stats = CalibrationStats.load(bundle / "calibration" / "stats.npz").tensors[INPUT]
    return stats.low, stats.high


SAID = {"agreement": "agreement with full precision on recent samples", "labels": "labels of recent samples", "data": "original data"}


@pytest.mark.parametrize("way", SAID)
def test_what_judges(shipped: Served, tmp_path: Path, way: str) -> None:
    """What calibrates, what judges and what is asked of it, by what is known: everything but the run itself."""
    state = kept(tmp_path / "state", shipped, 400, labels=300 if way == "labels" else 0)
    plan = planned(shipped.bundle, state, **({"data": shipped.data, "target": "labels"} if way == "data" else {}))  # type: ignore[arg-type]
    assert plan.judged_by == SAID[way]
    assert len(plan.calibration) == {"agreement": 200, "labels": 100, "data": 320}[way]
    assert len(plan.judge) == {"agreement": 200, "labels": 300, "data": 600}[way]
    assert len(plan.parts.apart) == {"agreement": 200, "labels": 300, "data": 80}[way]
    assert plan.left_out == {}
    options = options_of(plan)
    assert options.task == ("fidelity" if way == "agreement" else "classification")
    assert options.recipes == ("int8-static-minmax",)
    assert options.max_drop == "20%"
    if way == "labels":
        named = {array.tobytes(): label for array, label in zip(shipped.recent[:400], shipped.labels[:400], strict=True)}
        (batch,) = plan.judge.batches(300)
        assert plan.judge.labels is not None
        assert plan.judge.labels[batch.rows].tolist() == [named[row.tobytes()] for row in batch.feeds[INPUT]], "each has its own label"


@pytest.mark.slow
def test_a_challenger_is_made(shipped: Served, tmp_path: Path) -> None:
    """Through the real pipeline: its ranges are those of the recent samples, its preprocessing the old one, and it says what judged."""
    state = kept(tmp_path / "state", shipped, 400)
    found = again(shipped, state, tmp_path / "out")
    manifest = found.result.bundle.manifest
    assert manifest.policy.task == "fidelity"
    assert found.calibrated_on == 200
    assert manifest.data.calibration.how_selected == "given: recent inputs of cnn, 200 samples"
    assert manifest.data.validation.n == 200
    assert (tmp_path / "out" / "preprocess.yaml").read_text() == (shipped.bundle / "preprocess.yaml").read_text()
    low, high = ranges(tmp_path / "out")
    assert (low, high) == pytest.approx((shipped.recent[:400].min(), shipped.recent[:400].max()), abs=0.2)
    assert high < 0.7 * ranges(shipped.bundle)[1], "the old ranges are another traffic's"
    if manifest.chosen.recipe == "int8-static-minmax":  # what is fastest is for the machine to say
        assert found.challenger
        assert found.agreement is not None
        assert found.agreement.n == 200
        assert 0.5 <= found.agreement.before <= 1
        assert found.agreement.delta.value == pytest.approx(found.agreement.before - found.agreement.after)
    else:
        assert found.agreement is None
    assert found.to_json()["judged_by"] == SAID["agreement"]


def test_samples_that_judge_do_not_calibrate(shipped: Served, tmp_path: Path) -> None:
    """The traffic holds the very images of the original data: those are left out, and it is said how many."""
    state = kept(tmp_path / "state", shipped, 300)
    now = time.time()
    with Monitoring(state) as opened:
        opened.samples.offer(Sample("cnn", "v1", f"old{i}", now, {INPUT: shipped.fed[i]}) for i in range(50))
    plan = planned(shipped.bundle, state, data=shipped.data, target="labels")
    assert plan.left_out == {"equal to samples that judge": 50}
    old = {shipped.fed[i].tobytes() for i in range(50)}
    rows = [row.tobytes() for batch in plan.calibration.batches(64) for row in batch.feeds[INPUT]]
    assert len(rows) == 240
    assert not old & set(rows)


def test_what_cannot_be_done_is_said(shipped: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no server has kept windows"):
        again(shipped, tmp_path / "none", out)
    Monitoring(tmp_path / "empty").close()
    with pytest.raises(UsageError, match="No inputs were kept"):
        again(shipped, tmp_path / "empty", out)
    few = kept(tmp_path / "few", shipped, 40)
    with pytest.raises(DataError, match="40 different recent samples"):
        again(shipped, few, out)
    with pytest.raises(UsageError, match="No inputs were kept in that time"):
        again(shipped, few, out, since=time.time() + 10)
    with pytest.raises(UsageError, match="No inputs of 'other' were kept"):
        again(shipped, few, out, model="other")
    dropped = kept(tmp_path / "dropped", shipped, 100, redaction=Redaction(drop=frozenset({INPUT})))
    with pytest.raises(UsageError, match=f"lack input '{INPUT}'"):
        again(shipped, dropped, out)
    two = kept(kept(tmp_path / "two", shipped, 20), shipped, 20, model="b")
    with pytest.raises(UsageError, match="several models were kept: b, cnn"):
        again(shipped, two, out)
    assert not out.exists()


def test_what_has_no_ranges_is_refused(served: Served) -> None:
    from dataclasses import replace

    bundle = Bundle.load(served.bundle, verify=False)
    manifest = bundle.manifest
    kept_fp32 = manifest.model_copy(update={"decision": manifest.decision.model_copy(update={"chosen": manifest.baseline.id})})
    with pytest.raises(UsageError, match="no ranges that calibration alone has found"):
        recipe_of(replace(bundle, manifest=kept_fp32))
