"""Which engines for language models there are. Names resolve to classes on first use, so that nothing heavy is imported to list them.

A package adds its own by an entry point in the group `lowbit.engines`:

    [project.entry-points."lowbit.engines"]
    myengine = "mypackage.engine:MyEngine"
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from importlib.metadata import entry_points

from lowbit.errors import UsageError, unknown
from lowbit.llm.engines.base import ArtifactFormat, Engine

GROUP = "lowbit.engines"

BUILT_IN = {
    "llamacpp": "lowbit.llm.engines.llamacpp:LlamaCpp",
    "openvino": "lowbit.llm.engines.openvino_cpu:OpenVino",
    "onnxruntime-genai": "lowbit.llm.engines.onnxruntime_genai:OnnxRuntimeGenai",
    "torch": "lowbit.llm.engines.torch_cpu:TorchCpu",
}


def names() -> tuple[str, ...]:
    """All known names, installed or not; built-in ones first, and never replaced by another package's."""
    return tuple(_targets())


def get(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: The name is not known, the engine is not installed, or a third party's cannot be imported.
    """
    targets = _targets()
    if name not in targets:
        raise unknown("engine", name, targets)
    engine = _load(name, targets[name])
    if engine.version() is None:
        raise UsageError(f"Engine '{name}' is not installed.", f"Install it, e.g. pip install 'lowbit[{engine.extra}]'.")
    return engine


def available() -> list[Engine]:
    """The engines that are installed here."""
    found = []
    for name, target in _targets().items():
        try:
            engine = _load(name, target)
        except UsageError as error:
            warnings.warn(error.message, stacklevel=2)
            continue
        if engine.version() is not None:
            found.append(engine)
    return found


def opening(form: ArtifactFormat) -> list[Engine]:
    """The engines that are installed here and open artifacts of a format."""
    return [engine for engine in available() if engine.opens == form]


def _targets() -> dict[str, str]:
    others = {entry.name: entry.value for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN}
    return BUILT_IN | others


@cache
def _load(name: str, target: str) -> Engine:
    module, _, attribute = target.partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # a third party's module may fail in any way; lowbit goes on without it
        hint = "Reinstall or remove the package that provides it."
        raise UsageError(f"Engine '{name}' ({target}) cannot be loaded: {error}", hint) from error
    return engine
