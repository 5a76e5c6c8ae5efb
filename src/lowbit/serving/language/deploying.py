"""Loads a bundle of a language model: its variants side by side, each engine behind a desk of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from lowbit.errors import ModelError, unknown
from lowbit.llm.engines.base import LanguageSession
from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.language.bundle import LanguageBundle, Runs
from lowbit.serving.language.desk import Desk
from lowbit.serving.language.measures import MEASURES, OUTCOME
from lowbit.serving.language.rescoring import Rescorer
from lowbit.serving.language.settings import LanguageSettings
from lowbit.serving.language.words import Words
from lowbit.serving.run.deployment import CHOSEN, FULL, Deployment, Limits, Variant, version_of
from lowbit.types import TensorInfo

SLOTS = 4
"""Answers at once, at least, where nobody says."""


@dataclass(frozen=True)
class Speech:
    """What makes a deployment a language model's.

    Attributes:
        words: Its tokenizer.
        context: Tokens that a prompt and its answer may have together.
        settings: Of the server.
        rescorer: Scores some answers again; None where nobody asked for it, or nothing is beside what ships.
    """

    words: Words
    context: int
    settings: LanguageSettings
    rescorer: Rescorer | None = None


@dataclass(frozen=True)
class Measured:
    """Stands where other models have their sessions: what is counted of an answer has their inputs' and outputs' place.

    Attributes:
        inputs: Numbers of each answer; see `measures`.
        outputs: How it ended.
        batch: Answers at once.
        workers: Threads that run it.
        closing: Called when it is let go; the desk frees the engine itself.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch: int
    workers: int = 1
    closing: Callable[[], None] | None = None

    def close(self) -> None:
        """Frees what hangs on it."""
        if self.closing is not None:
            self.closing()


def load(
    folder: Path, *, name: str | None, version: str | None, digest: str, roles: Sequence[str], limits: Limits, settings: LanguageSettings
) -> Deployment:
    """See `run.deployment.load`.

    Raises:
        UsageError: no bundle, no such variant, or its engine is not installed.
        ModelError: a file was changed or cannot be run, the tokenizer is damaged, or the bundle was exchanged meanwhile.
    """
    read = version_of(folder)
    found = LanguageBundle.open(folder)
    words = Words.open(found.tokenizer)
    slots = settings.slots or max(SLOTS, found.concurrency)
    variants: dict[str, Variant] = {}
    rescorer = _rescorer(found, settings, variants)
    try:
        for role, runs in _wanted(found, roles).items():
            closing = rescorer.close if rescorer is not None and role == CHOSEN else None
            variants[role] = _variant(role, runs, found.context, slots, limits.max_queue, closing)
        if version_of(folder) != read:
            raise ModelError(
                "The bundle was exchanged while it was loaded.", "Load it again; a bundle is best exchanged by renaming folders."
            )
        _fit(words, variants)
    except BaseException:
        for variant in variants.values():
            variant.close()
        raise
    return Deployment(
        name or folder.resolve().name,
        version or read,
        found.bundle,
        variants,
        ClassReader(OUTCOME, True) if all(desk_of(each).tells for each in variants.values()) else None,
        None,
        {entry.path: entry.sha256 for entry in found.bundle.manifest.files},
        digest,
        language=Speech(words, min(desk_of(each).context for each in variants.values()), settings, rescorer),
    )


def desk_of(variant: Variant) -> Desk:
    """What stands in front of a language variant's engine."""
    return cast(Desk, cast(Any, variant.batcher))


def _wanted(found: LanguageBundle, roles: Sequence[str]) -> dict[str, Runs]:
    """Role -> what runs it, the chosen one first."""
    manifest = found.bundle.manifest
    ids = {manifest.baseline.id, *(candidate.id for candidate in manifest.candidates)}
    wanted = {CHOSEN: found.chosen}
    for role in roles:
        if role not in (CHOSEN, FULL) and role not in ids:
            raise unknown("variant", role, (CHOSEN, FULL, *sorted(ids)))
        runs = found.chosen if role == CHOSEN else found.full if role == FULL else found.runs(role)
        if runs is not None and runs.candidate not in {each.candidate for each in wanted.values()}:
            wanted[role] = runs
    return wanted


def _rescorer(found: LanguageBundle, settings: LanguageSettings, variants: Mapping[str, Variant]) -> Rescorer | None:
    full = found.full
    if full is None or not settings.shadow:
        return None

    def opens() -> LanguageSession:
        from lowbit.llm.engines import registry

        return registry.get(full.engine).open(full.artifact, full.tuning, context=found.context)

    def busy() -> tuple[bool, bool]:
        desks = [desk_of(each) for each in variants.values()]
        return any(desk.waiting for desk in desks), any(desk.running for desk in desks)

    return Rescorer(settings.shadow, opens, busy)


def _variant(role: str, runs: Runs, context: int, slots: int, queue: int, closing: Callable[[], None] | None = None) -> Variant:
    from lowbit.llm.engines import registry

    engine = registry.get(runs.engine)
    desk = Desk(partial(engine.batch, runs.artifact, runs.tuning, context=context, slots=slots), max_queue=queue)
    sessions = Measured(MEASURES, (TensorInfo(OUTCOME, (None, 3), "float32"),), desk.settings.max_batch, closing=closing)
    return Variant(runs.candidate, role, runs.precision, runs.engine, cast(Any, sessions), cast(Any, desk))


def _fit(words: Words, variants: dict[str, Variant]) -> None:
    """A tokenizer with more tokens than the model has is another model's."""
    least = min(desk_of(each).vocabulary for each in variants.values())
    if words.vocabulary > least:
        raise ModelError(f"The tokenizer has {words.vocabulary:,} tokens, and the model {least:,}.", "Copy the whole folder again.")
