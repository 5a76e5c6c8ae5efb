"""What is loaded: variants of one model side by side, each with its own batcher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lowbit.bundle.bundle import Bundle
from lowbit.errors import UsageError, unknown
from lowbit.serving.batcher import Batcher, Batching
from lowbit.serving.sessions import Sessions, open_sessions
from lowbit.types import TensorInfo

CHOSEN, FULL = "chosen", "full"
"""Words for the candidate that ships and for the source model in its own precision; where they are one, both name it."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what waits.

    Attributes:
        max_batch: Rows in a batch; None takes what was measured to be best.
        window_s: See `batcher.Batching`.
        max_queue: Rows that may wait for each variant.
    """

    max_batch: int | None = None
    window_s: float = 0.0
    max_queue: int = 256


@dataclass(frozen=True)
class Variant:
    """One candidate, loaded.

    Attributes:
        id: The candidate's id in the bundle.
        role: `CHOSEN`, `FULL`, or the id once more.
        precision: Of the weights and products.
        runtime: It runs on.
        sessions: Its sessions.
        batcher: In front of them.
    """

    id: str
    role: str
    precision: str
    runtime: str
    sessions: Sessions
    batcher: Batcher

    def close(self) -> None:
        """Refuses what waits, lets what runs end, frees the model."""
        self.batcher.close()
        self.sessions.close()


@dataclass(frozen=True)
class Deployment:
    """One version of one model, ready to answer.

    Attributes:
        name: Of the model, in addresses.
        version: The first twelve digits of the manifest's SHA-256: other evidence is another version.
        bundle: It comes from.
        variants: By role; `CHOSEN` always, and `FULL` where it is another one and was asked for.
    """

    name: str
    version: str
    bundle: Bundle
    variants: Mapping[str, Variant]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What every variant must be fed."""
        return self.variants[CHOSEN].sessions.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What every variant gives."""
        return self.variants[CHOSEN].sessions.outputs

    def variant(self, name: str) -> Variant | None:
        """By role or id."""
        if name in self.variants:
            return self.variants[name]
        if name == FULL and self.bundle.manifest.decision.chosen == self.bundle.manifest.baseline.id:
            return self.variants[CHOSEN]
        return next((variant for variant in self.variants.values() if variant.id == name), None)

    async def drained(self) -> None:
        """Waits until no variant has anything queued or running."""
        for variant in self.variants.values():
            await variant.batcher.drained()

    def close(self) -> None:
        """Frees all variants."""
        for variant in self.variants.values():
            variant.close()


def load(
    folder: Path,
    *,
    name: str | None = None,
    roles: tuple[str, ...] = (CHOSEN, FULL),
    limits: Limits = Limits(),
    on_batch: Callable[[str, int], None] | None = None,
) -> Deployment:
    """Loads a bundle's variants.

    Args:
        folder: Of the bundle; every file is checked against its digest.
        name: Of the model; the folder's name if None.
        roles: `CHOSEN`, `FULL` or ids of candidates.
        limits: On what waits.
        on_batch: Told the role and the rows of every batch that ran.

    Raises:
        UsageError: no bundle, no such candidate, or the artifact of one is not there.
        ModelError: a file was changed or cannot be run.
    """
    bundle = Bundle.load(folder)
    name = name or folder.resolve().name
    if not all(char.isalnum() or char in "-_." for char in name):
        raise UsageError(f"'{name}' cannot be part of an address.", "Use letters, digits, '-', '_' and '.': --name NAME.")
    variants: dict[str, Variant] = {}
    try:
        for role, candidate in _candidates(bundle, roles).items():
            variants[role] = _variant(bundle, role, candidate, limits, on_batch)
    except BaseException:
        for variant in variants.values():
            variant.close()
        raise
    version = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()[:12]
    return Deployment(name, version, bundle, variants)


def _candidates(bundle: Bundle, roles: tuple[str, ...]) -> dict[str, str]:
    """Role -> candidate's id, the chosen one first; the same candidate is loaded once."""
    manifest = bundle.manifest
    named = {CHOSEN: manifest.decision.chosen, FULL: manifest.baseline.id}
    ids = {manifest.baseline.id, *(candidate.id for candidate in manifest.candidates)}
    found = {CHOSEN: named[CHOSEN]}
    for role in roles:
        if role not in named and role not in ids:
            raise unknown("variant", role, (*named, *ids))
        if (candidate := named.get(role, role)) not in found.values():
            found[role] = candidate
    return found


def _variant(bundle: Bundle, role: str, candidate: str, limits: Limits, on_batch: Callable[[str, int], None] | None) -> Variant:
    entry = bundle.manifest.entry(candidate)
    sessions = open_sessions(bundle, candidate)
    most = 1 if sessions.batch == 1 else (limits.max_batch or sessions.batch)
    batching = Batching(most, limits.window_s, limits.max_queue, sessions.workers)
    tell = None if on_batch is None else (lambda rows: on_batch(role, rows))
    return Variant(candidate, role, entry.precision, entry.runtime, sessions, Batcher(sessions.run, batching, on_batch=tell))
