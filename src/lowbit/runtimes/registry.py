"""Which runtimes there are. Names resolve to classes on first use, so that nothing heavy is imported to list them.

A package adds its own by an entry point in the group `lowbit.runtimes`:

    [project.entry-points."lowbit.runtimes"]
    myruntime = "mypackage.runtime:MyRuntime"
"""

from __future__ import annotations

from lowbit.plugins import Plugins
from lowbit.runtimes.base import Runtime

GROUP = "lowbit.runtimes"

BUILT_IN = {
    "onnxruntime": "lowbit.runtimes.onnxruntime_cpu:OnnxRuntimeCpu",
    "openvino": "lowbit.runtimes.openvino_cpu:OpenVinoCpu",
}
ON_REQUEST = {"torch": "lowbit.runtimes.torch_cpu:TorchCpu"}
"""Used where it is named, and nowhere else (docs/decisions/0010)."""

_RUNTIMES = Plugins("runtime", GROUP, BUILT_IN | ON_REQUEST)


def names() -> tuple[str, ...]:
    """All known names, installed or not; built-in ones first, and never replaced by another package's."""
    return tuple(_RUNTIMES.targets())


def get(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        UsageError: The name is not known, the runtime is not installed, or a third party's cannot be imported.
    """
    found: Runtime = _RUNTIMES.get(name)
    return found


def available() -> list[Runtime]:
    """The runtimes that are installed here and used unless others are named; onnxruntime, the baseline's, first."""
    return _RUNTIMES.installed(name for name in names() if name not in ON_REQUEST)


def on_request() -> list[Runtime]:
    """The runtimes that are installed here and used only where they are named."""
    return _RUNTIMES.installed(ON_REQUEST)
