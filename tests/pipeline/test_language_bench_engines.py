"""`lowbit llm bench --engine`: what was asked for runs, or it is said why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lowbit.errors import UsageError
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines.base import EngineTuning
from lowbit.pipeline.language import stages
from lowbit.pipeline.language.stages import bench_artifacts
from lowbit.pipeline.reporting import Reporter

FILES = {"gguf": "model.gguf", "openvino": "openvino_model.xml", "safetensors": "model.safetensors"}
ENGINES = {"llamacpp": "gguf", "openvino": "openvino", "torch": "safetensors", "mine:Engine": "gguf"}


class Known:
    """An engine as far as it is looked at before anything runs."""

    def __init__(self, name: str) -> None:
        self.name, self.opens = name, ENGINES[name]

    def tunings(self, _hardware: Any) -> tuple[EngineTuning, ...]:
        return (EngineTuning(),)


@pytest.fixture(autouse=True)
def raced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines that would run, in the order of turns."""
    found: list[str] = []

    def measure(candidates: Sequence[EngineCandidate], *_: Any, **__: Any) -> dict[str, Any]:
        assert len({each.id for each in candidates}) == len(candidates)
        found.extend(each.engine for each in candidates)
        return {}

    monkeypatch.setattr(stages, "engine_of", Known)
    monkeypatch.setattr(stages, "measure", measure)
    return found


def bench(folder: Path, forms: Sequence[str], engines: Sequence[str]) -> None:
    paths = []
    for form in forms:
        (folder / form).mkdir(exist_ok=True)
        (folder / form / FILES[form]).write_bytes(b"x")
        paths.append(folder / form / FILES[form])
    bench_artifacts(paths, "prompt=8,output=4", engines, rounds=1, price_per_hour=None, reporter=Reporter())


def test_engines_are_those_asked_for(tmp_path: Path, raced: list[str]) -> None:
    bench(tmp_path, ["gguf", "safetensors"], ())
    bench(tmp_path, ["gguf", "safetensors"], ["torch", "mine:Engine"])
    bench(tmp_path, ["gguf"], ["llamacpp", "mine:Engine"])
    assert raced == ["llamacpp", "torch", "mine:Engine", "torch", "llamacpp", "mine:Engine"]


def test_another_engine_than_asked_for_never_runs(tmp_path: Path, raced: list[str]) -> None:
    with pytest.raises(UsageError, match=r"'model.safetensors' is safetensors, and no engine .* llamacpp opens gguf\.") as told:
        bench(tmp_path, ["gguf", "safetensors"], ["llamacpp"])
    assert "--engine torch" in (told.value.hint or "")
    with pytest.raises(UsageError, match=r"'model\.gguf' is gguf, and no engine"):
        bench(tmp_path, ["gguf"], ["torch"])
    assert raced == []


def test_an_engine_with_nothing_to_run_is_named(tmp_path: Path, raced: list[str]) -> None:
    with pytest.raises(UsageError, match=r"Engine 'openvino' opens openvino, and nothing that was named is: gguf\."):
        bench(tmp_path, ["gguf"], ["llamacpp", "openvino"])
    assert raced == []
