"""One artifact on one engine with one tuning: what is evaluated and measured."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowbit.errors import UsageError
from lowbit.llm.engines.base import Engine, EngineTuning

DEFAULT = EngineTuning()


@dataclass(frozen=True)
class EngineCandidate:
    """What could run.

    Attributes:
        id: Unique among those that are compared.
        engine: Its name in lowbit.llm.engines.registry, or "module:class" of another that keeps the contract.
        artifact: The main file.
        tuning: How the engine is asked to run it.
    """

    id: str
    engine: str
    artifact: Path
    tuning: EngineTuning = DEFAULT

    def spec(self) -> dict[str, Any]:
        """As a worker process reads it."""
        return {"engine": self.engine, "artifact": str(self.artifact.absolute()), "tuning": asdict(self.tuning)}


def engine_of(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: there is none, or it cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        from lowbit.llm.engines import registry

        found: Engine = registry.get(name)
        return found
    try:
        engine: Engine = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # another's module may fail in any way
        raise UsageError(f"Engine '{name}' cannot be loaded: {error}", "Write it as module:class.") from error
    return engine


def opened(spec: Mapping[str, Any]) -> tuple[Engine, Path, EngineTuning]:
    """What `EngineCandidate.spec` said."""
    return engine_of(spec["engine"]), Path(spec["artifact"]), EngineTuning(**spec["tuning"])
