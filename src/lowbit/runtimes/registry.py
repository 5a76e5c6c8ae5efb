"""Which runtimes there are. Names resolve to classes on first use, so that nothing heavy is imported to list them.

A package adds its own by an entry point in the group `lowbit.runtimes`:

    [project.entry-points."lowbit.runtimes"]
    myruntime = "mypackage.runtime:MyRuntime"
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from lowbit.errors import UsageError, unknown
from lowbit.runtimes.base import Runtime

GROUP = "lowbit.runtimes"

BUILT_IN = {
    "onnxruntime": "lowbit.runtimes.onnxruntime_cpu:OnnxRuntimeCpu",
    "openvino": "lowbit.runtimes.openvino_cpu:OpenVinoCpu",
}
ON_REQUEST = {"torch": "lowbit.runtimes.torch_cpu:TorchCpu"}
"""Used where it is named, and nowhere else (docs/decisions/0010)."""


def names() -> tuple[str, ...]:
    """All known names, installed or not; built-in ones first, and never replaced by another package's."""
    return tuple(_targets())


def get(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        UsageError: The name is not known, the runtime is not installed, or a third party's cannot be imported.
    """
    targets = _targets()
    if name not in targets:
        raise unknown("runtime", name, targets)
    runtime = _load(name, targets[name])
    if runtime.version() is None:
        raise UsageError(f"Runtime '{name}' is not installed.", f"Install it, e.g. pip install 'lowbit[{name}]'.")
    return runtime


def available() -> list[Runtime]:
    """The runtimes that are installed here and used unless others are named; onnxruntime, the baseline's, first."""
    return _installed({name: target for name, target in _targets().items() if name not in ON_REQUEST})


def on_request() -> list[Runtime]:
    """The runtimes that are installed here and used only where they are named."""
    return _installed(ON_REQUEST)


def _installed(targets: Mapping[str, str]) -> list[Runtime]:
    found = []
    for name, target in targets.items():
        try:
            runtime = _load(name, target)
        except UsageError as error:
            warnings.warn(error.message, stacklevel=2)
            continue
        if runtime.version() is not None:
            found.append(runtime)
    return found


def _targets() -> dict[str, str]:
    others = {entry.name: entry.value for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN | ON_REQUEST}
    return BUILT_IN | ON_REQUEST | others


@cache
def _load(name: str, target: str) -> Runtime:
    module, _, attribute = target.partition(":")
    try:
        runtime = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # a third party's module may fail in any way; lowbit goes on without it
        hint = "Reinstall or remove the package that provides it."
        raise UsageError(f"Runtime '{name}' ({target}) cannot be loaded: {error}", hint) from error
    return runtime
