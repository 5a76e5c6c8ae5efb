"""What is found by name: built-in classes and those of other packages' entry points. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.metadata import entry_points
from typing import Any

from lowbit.errors import UsageError, unknown


@dataclass(frozen=True)
class Plugins:
    """One kind of thing that runs something, each with `version() -> str | None`, None where it is not installed.

    Attributes:
        kind: In messages: "runtime", "engine".
        group: Of the entry points.
        built_in: Name -> "module:class"; never replaced by another package's.
    """

    kind: str
    group: str
    built_in: Mapping[str, str]
    _loaded: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)

    def targets(self) -> dict[str, str]:
        """All known names, installed or not, built-in ones first."""
        others = {entry.name: entry.value for entry in entry_points(group=self.group) if entry.name not in self.built_in}
        return {**self.built_in, **others}

    def get(self, name: str) -> Any:
        """The one of that name.

        Raises:
            UsageError: the name is not known, it is not installed, or a third party's cannot be imported.
        """
        found = self.find(name)
        if found.version() is None:
            extra = getattr(found, "extra", name)
            raise UsageError(f"{self.kind.capitalize()} '{name}' is not installed.", f"Install it, e.g. pip install 'lowbit[{extra}]'.")
        return found

    def find(self, name: str) -> Any:
        """The one of that name, whether what it needs is installed or not.

        Raises:
            UsageError: the name is not known, or a third party's cannot be imported.
        """
        targets = self.targets()
        if name not in targets:
            raise unknown(self.kind, name, targets)
        return self._load(name, targets[name])

    def installed(self, names: Iterable[str]) -> list[Any]:
        """Those of these names that are installed here; one that cannot be loaded is warned of and left out."""
        targets, found = self.targets(), []
        for name in names:
            try:
                loaded = self._load(name, targets[name])
            except UsageError as error:
                warnings.warn(error.message, stacklevel=3)
                continue
            if loaded.version() is not None:
                found.append(loaded)
        return found

    def _load(self, name: str, target: str) -> Any:
        if (name, target) not in self._loaded:
            module, _, attribute = target.partition(":")
            try:
                self._loaded[name, target] = getattr(importlib.import_module(module), attribute)()
            except Exception as error:  # a third party's module may fail in any way; lowbit goes on without it
                hint = "Reinstall or remove the package that provides it."
                raise UsageError(f"{self.kind.capitalize()} '{name}' ({target}) cannot be loaded: {error}", hint) from error
        return self._loaded[name, target]


def installed_version(module: str, *distributions: str) -> str | None:
    """The version of what a module comes from; None where it is not installed. Imports nothing.

    Args:
        module: To look for.
        *distributions: That it may come from, the first that is there counts; the module's own name where none is given.
    """
    found = _installed(module, distributions)
    return None if found is None else found[1]


def named_version(module: str, *distributions: str) -> str | None:
    """Likewise with the package's name before it: "onnx 1.23.2"."""
    found = _installed(module, distributions)
    return None if found is None else " ".join(found)


def _installed(module: str, distributions: tuple[str, ...]) -> tuple[str, str] | None:
    """The package that a module comes from, and its version."""
    if importlib.util.find_spec(module) is None:
        return None
    for distribution in distributions or (module,):
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return module, "unknown"
