"""ExecuTorch: the twin exported on the table's own scales, lowered and run where ExecuTorch has an environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_hand import Case, case
from target_case import INPUT, OUTPUT, Bounds

from conftest import missing
from lowbit.errors import UsageError
from lowbit.export.executorch.target import KERNELS, ExecuTorch
from lowbit.plugins import installed_version


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    if installed_version("torch") is None:
        missing("torch")
    return case(tmp_path_factory.mktemp("executorch"))


def test_without_an_environment_it_says_what_to_install(made: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWBIT_EXECUTORCH_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    target = ExecuTorch()
    if target.version() is not None:
        pytest.skip("ExecuTorch is installed beside lowbit")
    assert not target.abilities().write
    with pytest.raises(UsageError, match="ExecuTorch is not installed") as error:
        target.write(made.source, tmp_path, {})
    assert "venv" in str(error.value.hint)


def test_the_program_keeps_the_table_s_scales(made: Case, tmp_path: Path) -> None:
    """As far as PyTorch itself: exported, saved, loaded, and run beside the artifact."""
    import torch

    from lowbit.export.executorch.target import _program

    program, grids = _program(made.source, tmp_path)
    loaded = torch.export.load(program)
    calls = [node for node in loaded.graph.nodes if "quantize_per_tensor" in str(node.target) and "dequantize" not in str(node.target)]
    scales = sorted(float(node.args[1]) for node in calls)
    assert np.allclose(scales, sorted(float(grids[name].scale) for name in grids))
    assert sum("dequantize_per_channel" in str(node.target) for node in loaded.graph.nodes) == 4
    module = loaded.module()
    found = np.concatenate([module(torch.from_numpy(made.asked[row : row + 1]))[0].numpy() for row in range(16)])
    ours = made.answers()[:16]
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.9
    assert np.abs(found - ours).max() < 0.03 * np.ptp(ours)


def test_execu_torch_runs_what_was_lowered(made: Case, tmp_path: Path) -> None:
    target = ExecuTorch()
    if target.version() is None:
        missing("ExecuTorch's environment (LOWBIT_EXECUTORCH_PYTHON or .venv-executorch)")
    artifact = target.write(made.source, tmp_path, {})
    assert artifact.main.name == "case.pte"
    assert int(artifact.facts["delegates"]) >= 1
    assert [finding.severity for finding in target.check(artifact) if finding.severity != "note"] == []
    session = target.open(artifact, KERNELS)
    found, ours = session.run({INPUT: made.asked})[OUTPUT], made.answers()
    levels = session.integers({INPUT: made.asked[:2]})
    session.close()
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.9
    assert np.abs(found - ours).max() < 0.03 * np.ptp(ours)
    assert levels is not None
    assert levels[OUTPUT].min() >= 0
    assert levels[OUTPUT].max() <= 255


@pytest.mark.parametrize("clip", [(0.25, -0.1), (50.0, None), (None, 0.0)])
def test_bounds_that_cross_or_leave_nothing_are_those_of_onnx(clip: Bounds, tmp_path: Path) -> None:
    """The upper one counts; and a grid of one value may end just beside it."""
    if installed_version("torch") is None:
        missing("torch")
    import torch

    from lowbit.export.executorch.target import _program

    clipped = case(tmp_path, clip=clip)
    module = torch.export.load(_program(clipped.source, tmp_path)[0]).module()
    found = module(torch.from_numpy(clipped.asked[:1]))[0].numpy()
    ours = clipped.answers()[:1]
    assert np.abs(found - ours).max() < 0.05 * max(np.ptp(clipped.answers()), 1.0)


@pytest.mark.parametrize("clip", [(0.0, 0.3), (-0.1, None), (None, 0.2)])
def test_a_clip_behind_a_product_is_fused_with_it(clip: Bounds, tmp_path: Path) -> None:
    """XNNPACK's partitioner knows no other form of it: a clamp there made MCUNet answer 0.2 % of its classes."""
    target = ExecuTorch()
    if target.version() is None:
        missing("ExecuTorch's environment (LOWBIT_EXECUTORCH_PYTHON or .venv-executorch)")
    clipped = case(tmp_path, clip=clip)
    artifact = target.write(clipped.source, tmp_path, {})
    session = target.open(artifact, KERNELS)
    found, ours = session.run({INPUT: clipped.asked})[OUTPUT], clipped.answers()
    session.close()
    assert (found.argmax(1) == ours.argmax(1)).mean() >= 0.9
    assert np.abs(found - ours).max() < 0.03 * np.ptp(ours)
