from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.errors import UsageError
from lowbit.runtimes import registry


def install_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "acme") -> None:
    """A distribution with an entry point, as pip would leave it."""
    (folder / f"{name}_runtime.py").write_text(source)
    info = folder / f"{name}_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lowbit.runtimes]\n{name} = {name}_runtime:Runtime\n")
    monkeypatch.syspath_prepend(folder)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Unknown runtime 'onxruntime'") as caught:
        registry.get("onxruntime")
    assert caught.value.hint == "Did you mean 'onnxruntime'?"


def test_the_baseline_is_first() -> None:
    assert registry.available()[0].name == "onnxruntime"
    assert registry.names()[:2] == ("onnxruntime", "openvino")


def test_torch_waits_to_be_asked() -> None:
    assert "torch" in registry.names()
    assert "torch" not in [each.name for each in registry.available()]
    here = importlib.util.find_spec("torch") is not None
    assert [each.name for each in registry.on_request()] == (["torch"] if here else [])


def test_torch_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="Runtime 'torch' is not installed") as caught:
        registry.get("torch")
    assert caught.value.hint == "Install it, e.g. pip install 'lowbit[torch]'."
    assert registry.on_request() == []


def test_third_party_runtime_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, monkeypatch, "class Runtime:\n    name = 'acme'\n    def version(self): return '7'\n")
    assert registry.names()[-1] == "acme"
    assert registry.get("acme").version() == "7"
    assert "acme" in [each.name for each in registry.available()]


def test_third_party_cannot_replace_a_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, monkeypatch, "class Runtime:\n    name = 'mine'\n", name="onnxruntime")
    assert registry.get("onnxruntime").name == "onnxruntime"


def test_broken_third_party_runtime_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, monkeypatch, "raise ImportError('libacme.so is missing')", name="broken")
    with pytest.warns(UserWarning, match=r"Runtime 'broken' .* cannot be loaded: libacme.so is missing"):
        found = registry.available()
    assert "onnxruntime" in [each.name for each in found]
    with pytest.raises(UsageError, match=r"libacme.so is missing"):
        registry.get("broken")


def test_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, monkeypatch, "class Runtime:\n    name = 'gone'\n    def version(self): return None\n", name="gone")
    with pytest.raises(UsageError, match="Runtime 'gone' is not installed"):
        registry.get("gone")
    assert "gone" not in [each.name for each in registry.available()]


def test_listing_imports_nothing_heavy() -> None:
    heavy = "{'onnxruntime', 'openvino', 'onnx', 'torch'}"
    check = f"import sys; from lowbit.runtimes import available; available(); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "set()\n"
