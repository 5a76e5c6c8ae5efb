"""Targets by name. Built-in ones are listed here and imported when they are asked for.

A package adds its own by an entry point in the group `lowbit.targets`:

    [project.entry-points."lowbit.targets"]
    my-chip = "my_package:MyChip"
"""

from __future__ import annotations

from lowbit.errors import UsageError
from lowbit.export.base import Target
from lowbit.plugins import Plugins

GROUP = "lowbit.targets"

BUILT_IN = {
    "litert": "lowbit.export.litert.target:LiteRT",
    "cortex-m": "lowbit.export.cortexm.target:CortexM",
    "edgetpu": "lowbit.export.edgetpu.target:EdgeTpu",
    "qnn": "lowbit.export.qnn.target:Qnn",
    "coreml": "lowbit.export.coreml.target:CoreMl",
    "tensorrt": "lowbit.export.tensorrt.target:TensorRt",
    "optimum": "lowbit.export.optimum.target:Optimum",
    "ort-mobile": "lowbit.export.ortmobile.target:OrtMobile",
    "ort-web": "lowbit.export.ortweb.target:OrtWeb",
    "executorch": "lowbit.export.executorch.target:ExecuTorch",
}

_TARGETS = Plugins("target", GROUP, BUILT_IN)


def names() -> tuple[str, ...]:
    """All known names; built-in ones first, and never replaced by another package's."""
    return tuple(_TARGETS.targets())


def get(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: The name is not known, what it needs is not installed, or a third party's cannot be imported.
    """
    known = find(name)
    if known.version() is None and (missing := known.abilities().missing):
        own = f"lowbit[{known.extra}]"
        steps = missing[:1] if known.extra is None or own in missing[0] else (f"pip install '{own}'", missing[0])
        raise UsageError(f"Target '{name}' is not installed.", f"Install it: {'; then '.join(steps)}")
    found: Target = _TARGETS.get(name)
    return found


def find(name: str) -> Target:
    """The target of that name, installed or not: to say what is missing.

    Raises:
        UsageError: The name is not known, or a third party's cannot be imported.
    """
    found: Target = _TARGETS.find(name)
    return found
