"""Which engines for language models there are. Names resolve to classes on first use, so that nothing heavy is imported to list them.

A package adds its own by an entry point in the group `lowbit.engines`:

    [project.entry-points."lowbit.engines"]
    myengine = "mypackage.engine:MyEngine"
"""

from __future__ import annotations

from lowbit.llm.engines.base import ArtifactFormat, Engine
from lowbit.plugins import Plugins

GROUP = "lowbit.engines"

BUILT_IN = {
    "llamacpp": "lowbit.llm.engines.llamacpp:LlamaCpp",
    "openvino": "lowbit.llm.engines.openvino_cpu:OpenVino",
    "onnxruntime-genai": "lowbit.llm.engines.onnxruntime_genai:OnnxRuntimeGenai",
    "torch": "lowbit.llm.engines.torch_cpu:TorchCpu",
}

_ENGINES = Plugins("engine", GROUP, BUILT_IN)


def names() -> tuple[str, ...]:
    """All known names, installed or not; built-in ones first, and never replaced by another package's."""
    return tuple(_ENGINES.targets())


def get(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: The name is not known, the engine is not installed, or a third party's cannot be imported.
    """
    found: Engine = _ENGINES.get(name)
    return found


def available() -> list[Engine]:
    """The engines that are installed here."""
    return _ENGINES.installed(names())


def opening(form: ArtifactFormat) -> list[Engine]:
    """The engines that are installed here and open artifacts of a format."""
    return [engine for engine in available() if engine.opens == form]
