"""A model that was made for so many samples a call goes to every target, and answers any number of them there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_hand import Case, case, with_batch
from target_case import INPUT, OUTPUT

from conftest import missing
from lowbit.export import registry
from lowbit.export.settings import settings_of

SIZE = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("fixed"))


@pytest.mark.parametrize("name", [name for name in registry.names() if name != "optimum"])  # slow to load; has a test of its own
def test_any_number_of_samples_is_answered(name: str, made: Case, tmp_path: Path) -> None:
    target = registry.find(name)
    if target.version() is None:
        missing(f"what writes for {target.title}")
    artifact = target.write(with_batch(made.source, SIZE), tmp_path, settings_of(target, ()))
    kernel_sets = target.kernel_sets(artifact)
    if not kernel_sets:
        missing(f"what runs {target.title}")
    session = target.open(artifact, kernel_sets[0])
    ours = made.answers()
    try:
        for n in (1, 4):
            found = session.run({INPUT: made.asked[:n]})[OUTPUT]
            assert found.shape == ours[:n].shape
            assert np.abs(found - ours[:n]).max() < 0.15 * np.abs(ours).max()
    finally:
        session.close()
