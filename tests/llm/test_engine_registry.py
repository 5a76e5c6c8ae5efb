"""The list of engines for language models."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import missing
from lowbit.errors import UsageError
from lowbit.llm.engines import registry
from lowbit.plugins import Plugins, installed_version


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """What other packages register; change the list."""
    found: list[EntryPoint] = []
    monkeypatch.setattr("lowbit.plugins.entry_points", lambda group: found if group == registry.GROUP else [])
    return found


def test_built_in_engines_come_first(entries: list[EntryPoint]) -> None:
    entries += [
        EntryPoint("mine", "lowbit.llm.engines.torch_cpu:TorchCpu", registry.GROUP),
        EntryPoint("torch", "theirs:X", registry.GROUP),
    ]
    assert registry.names() == ("llamacpp", "openvino", "onnxruntime-genai", "torch", "mine")
    if installed_version("torch") is None:
        missing("torch")
    assert registry.get("mine").name == "torch"
    assert type(registry.get("torch")).__module__ == "lowbit.llm.engines.torch_cpu"


def test_unknown_names_have_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'openvino'"):
        registry.get("openvno")


def test_engines_that_do_not_load_are_told_of_and_left_out(entries: list[EntryPoint]) -> None:
    entries.append(EntryPoint("broken", "no_such_module_anywhere:X", registry.GROUP))
    with pytest.raises(UsageError, match="broken"):
        registry.get("broken")
    with pytest.warns(UserWarning, match="broken"):
        assert "broken" not in [engine.name for engine in registry.available()]


def test_engines_that_are_not_installed_say_how_to_install_them(entries: list[EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    absent = SimpleNamespace(name="absent", opens="gguf", extra="some-extra", version=lambda: None)
    monkeypatch.setattr(Plugins, "_load", lambda *_: absent)
    entries.append(EntryPoint("absent", "x:Y", registry.GROUP))
    with pytest.raises(UsageError, match=r"lowbit\[some-extra\]"):
        registry.get("absent")
    assert registry.available() == []


def test_each_format_has_its_engines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = registry.available()
    for engine in found:
        assert engine in registry.opening(engine.opens)
    assert all(engine.opens == "onnx" for engine in registry.opening("onnx"))


def test_names_are_listed_without_loading_anything() -> None:
    heavy = "('torch', 'onnxruntime', 'openvino', 'llama_cpp', 'transformers', 'onnx')"
    code = f"import sys; from lowbit.llm.engines import registry; registry.available(); print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "[]"
