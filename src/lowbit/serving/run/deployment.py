"""What is loaded: variants of one model side by side, each with its own batcher."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import FILE_NAME, read_manifest
from lowbit.errors import ModelError, UsageError, unknown
from lowbit.serving.answer.certainty import ClassReader, reader_for
from lowbit.serving.run.batcher import Batcher, Batching
from lowbit.serving.run.ragged import ragged_for
from lowbit.serving.run.sessions import Sessions, open_sessions
from lowbit.types import TensorInfo

if TYPE_CHECKING:
    from lowbit.data.preprocess import Preprocess
    from lowbit.serving.language.deploying import Speech
    from lowbit.serving.language.settings import LanguageSettings

OnBatch = Callable[[str, str, str], Callable[[int], None]]
"""(model, version, variant's id) -> what is told the rows of each of its batches."""

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
        """Refuses what has no answer yet, and frees the model once nothing runs on it any more."""
        self.batcher.close(self.sessions.close)


class Inside:
    """Counts the requests within a deployment, so that it is freed behind the last one."""

    def __init__(self) -> None:
        """Nobody is there yet."""
        self.count = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self) -> None:
        """A request comes."""
        self.count += 1
        if self.count == 1:
            self._empty.clear()

    def leave(self) -> None:
        """It has its answer."""
        self.count -= 1
        if not self.count:
            self._empty.set()

    async def empty(self) -> None:
        """Waits until nobody is there."""
        await self._empty.wait()


@dataclass(frozen=True)
class Deployment:
    """One version of one model, ready to answer.

    Attributes:
        name: Of the model, in addresses.
        version: The first twelve digits of the manifest's SHA-256: other evidence is another version. From a registry: its number there.
        bundle: It comes from.
        variants: By role; `CHOSEN` always, and `FULL` where it is another one and was asked for.
        reader: Of its answers' certainties; None where they are no classes.
        preprocess: The bundle's; None where samples are fed as they are.
        digests: SHA-256 of each of the bundle's files that was loaded, by its path within the bundle.
        digest: Of the version in the registry that it came from; empty where it did not.
        inside: Its requests.
        language: What makes it a language model's; None for everything else.

    What a request needs of the bundle is here: the folder may hold another version by then, and must not be read again.
    """

    name: str
    version: str
    bundle: Bundle
    variants: Mapping[str, Variant]
    reader: ClassReader | None = None
    preprocess: Preprocess | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    inside: Inside = field(default_factory=Inside, compare=False, repr=False)
    language: Speech | None = field(default=None, compare=False, repr=False)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What every variant must be fed."""
        return self.variants[CHOSEN].sessions.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What every variant gives."""
        return self.variants[CHOSEN].sessions.outputs

    @property
    def alive(self) -> bool:
        """Whether it can answer. An engine of a language model that failed may not open again; full precision beside it stands in."""
        if self.language is None:
            return True
        return any(getattr(each.batcher, "alive", True) for role, each in self.variants.items() if role in (CHOSEN, FULL))

    def variant(self, name: str) -> Variant | None:
        """By role or id."""
        if name in self.variants:
            return self.variants[name]
        if name == FULL and self.bundle.manifest.decision.chosen == self.bundle.manifest.baseline.id:
            return self.variants[CHOSEN]
        return next((variant for variant in self.variants.values() if variant.id == name), None)

    async def drained(self) -> None:
        """Waits until no request is inside, and no variant has anything queued or running."""
        await self.inside.empty()
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
    version: str | None = None,
    digest: str = "",
    roles: tuple[str, ...] = (CHOSEN, FULL),
    limits: Limits = Limits(),
    on_batch: OnBatch | None = None,
    opener: Callable[[Bundle, str], Sessions] = open_sessions,
    language: LanguageSettings | None = None,
) -> Deployment:
    """Loads a bundle's variants.

    Args:
        folder: Of the bundle; every file is checked against its digest.
        name: Of the model; the folder's name if None.
        version: To be known by; the manifest's if None.
        digest: See `Deployment.digest`.
        roles: `CHOSEN`, `FULL` or ids of candidates.
        limits: On what waits.
        on_batch: Gives who is told of a variant's batches.
        opener: Opens a candidate's sessions, here or elsewhere.
        language: How language models are served; None as usual.

    Raises:
        UsageError: no bundle, no such candidate, or the artifact of one is not there.
        ModelError: a file was changed or cannot be run, or the bundle was exchanged meanwhile.
    """
    name = name or folder.resolve().name
    if not all(char.isalnum() or char in "-_." for char in name):
        raise UsageError(f"'{name}' cannot be part of an address.", "Use letters, digits, '-', '_' and '.': --name NAME.")
    read = version_of(folder)
    if read_manifest(folder).language is not None:
        if opener is not open_sessions:
            raise UsageError(f"'{name}' is a language model: it runs in the server itself, not on Ray.", "Leave --engine ray out.")
        return _language(folder, name, version, digest, roles, limits, language)
    version = version or read
    bundle = Bundle.load(folder)
    steps = bundle.preprocess
    variants: dict[str, Variant] = {}
    try:
        for role, candidate in _candidates(bundle, roles).items():
            told = on_batch(name, version, candidate) if on_batch else None
            variants[role] = _variant(bundle, role, candidate, opener(bundle, candidate), limits, told, steps)
        reader = reader_for(bundle, variants[CHOSEN].sessions.outputs)
        if version_of(folder) != read:
            raise ModelError(
                "The bundle was exchanged while it was loaded.", "Load it again; a bundle is best exchanged by renaming folders."
            )
    except BaseException:
        for variant in variants.values():
            variant.close()
        raise
    digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    return Deployment(name, version, bundle, variants, reader, steps, digests, digest)


def _language(
    folder: Path, name: str, version: str | None, digest: str, roles: tuple[str, ...], limits: Limits, settings: LanguageSettings | None
) -> Deployment:
    from lowbit.serving.language import deploying
    from lowbit.serving.language.settings import LanguageSettings

    return deploying.load(
        folder, name=name, version=version, digest=digest, roles=roles, limits=limits, settings=settings or LanguageSettings()
    )


def version_of(folder: Path) -> str:
    """See `Deployment.version`.

    Raises:
        UsageError: it is no bundle.
    """
    try:
        raw = (folder / FILE_NAME).read_bytes()
    except OSError:
        read_manifest(folder)  # says what is wrong
        raise
    return hashlib.sha256(raw).hexdigest()[:12]


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


def _variant(
    bundle: Bundle,
    role: str,
    candidate: str,
    sessions: Sessions,
    limits: Limits,
    on_batch: Callable[[int], None] | None,
    steps: Preprocess | None,
) -> Variant:
    entry = bundle.manifest.entry(candidate)
    most = 1 if sessions.batch == 1 else (limits.max_batch or sessions.batch)
    batching = Batching(most, limits.window_s, limits.max_queue, sessions.workers)
    padding = ragged_for(sessions.run, sessions.inputs, _pad_id(steps)) if most > 1 else None
    batcher = Batcher(sessions.run, batching, on_batch=on_batch, padding=padding)
    return Variant(candidate, role, entry.precision, entry.runtime, sessions, batcher)


def _pad_id(steps: Preprocess | None) -> int:
    return 0 if steps is None or steps.text is None else steps.text.pad_id
