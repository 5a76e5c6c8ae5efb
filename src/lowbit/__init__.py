"""lowbit: the smallest, fastest version of a trained model that is still right.

result = lowbit.optimize("resnet50.onnx", data="val/", max_drop="1%")
print(result.decision)
result.bundle.session().run(batch)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.quiet import no_telemetry

__version__ = "0.1.0"

no_telemetry()

if TYPE_CHECKING:
    from lowbit.bundle.bundle import Bundle as Bundle
    from lowbit.pipeline.optimize import Result as Result
    from lowbit.pipeline.optimize import optimize as optimize

__all__ = ["Bundle", "Result", "__version__", "optimize"]

_HOMES = {"Bundle": "lowbit.bundle.bundle", "Result": "lowbit.pipeline.optimize", "optimize": "lowbit.pipeline.optimize"}


def __getattr__(name: str) -> Any:
    """Imports the public names on first use: `import lowbit` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lowbit' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
