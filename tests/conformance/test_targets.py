"""The suite that every target passes: written whole, the same every time, and where it can be run, right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from target_case import INPUT, OUTPUT, samples, target_bundle

from conftest import missing
from lowbit.bundle.bundle import Bundle
from lowbit.errors import ModelError, UsageError
from lowbit.export import registry
from lowbit.export.base import Artifact, Referenced, Target, TargetSession
from lowbit.export.make import MARK
from lowbit.export.neutral import Neutral, read_neutral
from lowbit.export.settings import settings_of
from lowbit.pipeline.targets.leave import leave

AGREES = {"qnn": 0.97, "tensorrt": 0.95, "edgetpu": 0.95}
"""Least share of the same classes; 0.98 for all others. TensorRT's grids are symmetric, and Edge TPU's dense weights have one scale: other
numbers than the bundle's."""


EXACT = frozenset({"tflite-micro", "cpu: tflite-micro", "qemu-m4", "qemu-m7", "qemu-m55", "host"})
"""Kernel sets that give the levels of the exact interpreter, all of them."""

SHUFFLED = frozenset({"ort-mobile"})
"""Written by other people's converters, which order what they write as it lies in memory."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return target_bundle(tmp_path_factory.mktemp("targets"))


@pytest.fixture(scope="module")
def source(bundle: Bundle) -> Neutral:
    return read_neutral(bundle)


@pytest.fixture(params=registry.names())
def target(request: pytest.FixtureRequest) -> Target:
    found = registry.find(request.param)
    if found.version() is None:
        missing(f"what writes for {found.title}")
    return found


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[Artifact, Path]]:
    """Artifacts by target: some take seconds to make."""
    return {}


@pytest.fixture
def folder(target: Target, source: Neutral, written: dict[str, tuple[Artifact, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if target.name not in written:
        folder = tmp_path_factory.mktemp(target.name)
        written[target.name] = (target.write(source, folder, settings_of(target, ())), folder)
    return written[target.name][1]


@pytest.fixture
def artifact(target: Target, folder: Path, written: dict[str, tuple[Artifact, Path]]) -> Artifact:
    assert folder.is_dir()
    return written[target.name][0]


@pytest.fixture(scope="module")
def with_elu(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with an operator that integer programs lack."""
    return target_bundle(tmp_path_factory.mktemp("elu"), extra="Elu")


def sessions(target: Target, artifact: Artifact) -> Iterator[tuple[str, TargetSession]]:
    for kernels in target.kernel_sets(artifact):
        session = target.open(artifact, kernels)
        try:
            yield kernels, session
        finally:
            session.close()


def test_a_target_says_what_can_be_done_for_it(target: Target) -> None:
    able = target.abilities()
    assert target.name in registry.names()
    assert able.write
    assert able.words.endswith((".", "hardware", "compiled", "built")) or able.words
    assert all(type(value) is type(wish.default) for wish in target.wishes for value in wish.allowed)


def test_what_is_written_is_there_and_is_the_same_every_time(
    target: Target, source: Neutral, artifact: Artifact, folder: Path, tmp_path: Path
) -> None:
    assert artifact.main in artifact.files or artifact.main.is_dir()
    assert artifact.size_bytes > 0
    assert all(file.is_relative_to(folder) and file.exists() for file in artifact.files)
    (tmp_path / "again").mkdir()
    again = target.write(source, tmp_path / "again", settings_of(target, ()))
    assert [file.relative_to(tmp_path / "again") for file in again.files] == [file.relative_to(folder) for file in artifact.files]
    assert again.size_bytes == artifact.size_bytes
    if artifact.main.is_file() and target.name not in SHUFFLED:
        assert again.main.read_bytes() == artifact.main.read_bytes()


def test_no_rule_is_broken(target: Target, artifact: Artifact) -> None:
    assert [finding.text for finding in target.check(artifact) if finding.severity == "error"] == []


def test_it_answers_as_the_bundle_does(target: Target, bundle: Bundle, source: Neutral, artifact: Artifact) -> None:
    asked = samples(64, seed=9)
    with bundle.session(runtime="onnxruntime", candidate=source.candidate) as session:
        ours = session.run({INPUT: asked})[OUTPUT]
    for kernels, opened in sessions(target, artifact):
        found = opened.run({INPUT: asked})
        assert set(found) == {OUTPUT}, kernels
        assert found[OUTPUT].shape == ours.shape, kernels
        assert found[OUTPUT].dtype == np.float32, kernels
        same = (found[OUTPUT].argmax(1) == ours.argmax(1)).mean()
        assert same >= AGREES.get(target.name, 0.98), f"{kernels}: {same}"
        apart = np.abs(found[OUTPUT] - ours)
        assert np.quantile(apart, 0.95) < 0.1 * np.abs(ours).max(), kernels  # beyond what calibration saw, levels saturate


def test_a_sample_is_answered_alone_as_it_is_among_others(target: Target, artifact: Artifact) -> None:
    asked = samples(3, seed=4)
    for kernels, opened in sessions(target, artifact):
        together = opened.run({INPUT: asked})[OUTPUT]
        alone = [opened.run({INPUT: asked[row : row + 1]})[OUTPUT] for row in range(3)]
        assert np.array_equal(together, np.concatenate(alone)), kernels


def test_levels_are_the_answers_on_their_grid(target: Target, artifact: Artifact) -> None:
    asked = samples(4, seed=5)
    for kernels, opened in sessions(target, artifact):
        levels = opened.integers({INPUT: asked})
        if levels is None:
            continue
        answers = opened.run({INPUT: asked})[OUTPUT]
        assert levels[OUTPUT].shape == answers.shape, kernels
        steps = np.unique(levels[OUTPUT].astype(int), return_index=True)
        values = answers.reshape(-1)[steps[1]]
        assert np.all(np.diff(values) > 0), f"{kernels}: higher levels stand for larger numbers"


def test_an_export_is_a_folder_with_the_evidence(target: Target, bundle: Bundle, tmp_path: Path) -> None:
    pictures = samples(40, seed=7)
    with bundle.session(candidate=bundle.manifest.baseline.id) as session:
        labels = session.run({INPUT: pictures})[OUTPUT].argmax(1)
    out = tmp_path / "out"
    found = leave(bundle, target.name, out, data={INPUT: pictures, "label": labels}, time=False)
    told = json.loads((out / MARK).read_text())
    assert told["target"] == target.name
    assert (out / told["artifact"]).exists()
    assert told["size_bytes"] == found.size_bytes
    for kernels in found.kernels:
        assert kernels.error is None
        assert not kernels.drawn
        assert kernels.samples == 40
        assert kernels.agreement >= 0.9
        assert kernels.verdict in ("ship", "provisional")
        assert math.isnan(kernels.identical) or kernels.identical == 1.0 or kernels.kernels not in EXACT
        has_reference = isinstance(target, Referenced) or not math.isnan(kernels.identical)
        assert kernels.agreement_exact >= 0.9 if has_reference else math.isnan(kernels.agreement_exact)
        assert kernels.identical < 1.0 or math.isnan(kernels.identical) or kernels.agreement_exact == 1.0
        assert kernels.largest_step is None or kernels.largest_step <= 16
    with pytest.raises(UsageError, match="--force"):
        leave(bundle, target.name, out, time=False)


@pytest.mark.parametrize(("name", "settings"), [("litert", ["way=table"]), ("cortex-m", []), ("edgetpu", [])], ids=str)
def test_an_operator_that_a_target_lacks_is_named(name: str, settings: list[str], with_elu: Bundle, tmp_path: Path) -> None:
    target = registry.find(name)
    if target.version() is None:
        missing(f"what writes for {target.title}")
    with pytest.raises(ModelError, match="Elu") as caught:
        leave(with_elu, name, tmp_path / "out", settings=settings, time=False)
    assert "special" in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_says_how_to_install_it(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    if target.extra is None:
        pytest.skip(f"{target.title} needs nothing that pip installs")
    monkeypatch.setattr(type(target), "version", lambda _: None)
    with pytest.raises(UsageError, match=rf"lowbit\[{target.extra}\]"):
        registry.get(target.name)
