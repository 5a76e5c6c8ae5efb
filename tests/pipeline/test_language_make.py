"""A recipe's table is made once: for every engine that it is written for, and for every resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from decoder_case import need, random_decoder

from lowbit.llm.folder import SourceFolder
from lowbit.llm.table import Table
from lowbit.pipeline.language.context import LanguageContext
from lowbit.pipeline.language.make import TABLE, make_table
from lowbit.pipeline.language.recipes import MIXED, MIXED_GRIDS
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.store import Store

TOKENS = np.random.default_rng(1).integers(2, 300, (4, 32)).astype(np.int32)


def context(model: Path, out: Path) -> LanguageContext:
    out.mkdir(exist_ok=True)
    return LanguageContext(cast("Any", SimpleNamespace(source=SourceFolder.open(model), calibration=TOKENS)), Store(out), Reporter(), None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for every time that sensitivities are measured."""
    need("torch")
    from lowbit.llm.methods import allocate

    before, times = allocate.sensitivities, []

    def counted(*args: Any, **options: Any) -> Any:
        times.append(len(times))
        return before(*args, **options)

    monkeypatch.setattr(allocate, "sensitivities", counted)
    return times


def test_sensitivities_are_measured_once_and_the_finished_table_is_taken(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch", "transformers", "safetensors", "tokenizers")
    model = random_decoder("llama", tmp_path / "model")
    made = make_table(context(model, tmp_path / "out"), MIXED)
    assert {Table.open(made).recipe.grid_of(0, role) for role in ("attention.q", "mlp.up", "mlp.down")} <= set(MIXED_GRIDS)
    assert len(measured) == 1
    before = (made / TABLE).read_bytes()

    def read(*_: object) -> None:
        raise AssertionError("the source's weights are read again")

    monkeypatch.setattr(SourceFolder, "get", read)
    monkeypatch.setattr(SourceFolder, "sha256", property(read))
    assert make_table(context(model, tmp_path / "out"), MIXED) == made  # another engine, or a resume
    assert len(measured) == 1
    assert (made / TABLE).read_bytes() == before


def test_a_table_that_is_not_finished_is_gone_on_with(tmp_path: Path, measured: list[int]) -> None:
    need("torch", "transformers", "safetensors", "tokenizers")
    model = random_decoder("llama", tmp_path / "model")
    whole = make_table(context(model, tmp_path / "whole"), MIXED)

    class Cut(Reporter):
        def advance(self, done: int) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    at = context(model, tmp_path / "cut")
    at.reporter = Cut()
    with pytest.raises(KeyboardInterrupt):
        make_table(at, MIXED)
    assert not (at.table(MIXED.name) / TABLE).exists()
    found = make_table(context(model, tmp_path / "cut"), MIXED)
    assert len(measured) == 3
    assert Table.open(found).digest == Table.open(whole).digest
