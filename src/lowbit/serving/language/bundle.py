"""What a bundle says of a language model, as far as serving needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import read_manifest
from lowbit.bundle.schema import LanguageVariantEntry
from lowbit.errors import ModelError, UsageError
from lowbit.llm.engines.base import EngineTuning


@dataclass(frozen=True)
class Runs:
    """An artifact and what runs it.

    Attributes:
        candidate: Id of the candidate that it is of.
        engine: Its name in `lowbit.llm.engines.registry`.
        artifact: Its main file.
        tuning: As it was measured.
        precision: Of the weights, for people.
    """

    candidate: str
    engine: str
    artifact: Path
    tuning: EngineTuning
    precision: str


@dataclass(frozen=True)
class LanguageBundle:
    """A bundle of a language model.

    Attributes:
        bundle: The whole of it.
        chosen: What ships.
        full: The 16-bit model beside it; None where there is none, or where it is what ships.
        context: Tokens that a prompt and its answer may have together.
        tokenizer: Folder with tokenizer.json and tokenizer_config.json.
        concurrency: Requests in flight for which it was tuned.
    """

    bundle: Bundle
    chosen: Runs
    full: Runs | None
    context: int
    tokenizer: Path
    concurrency: int

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> LanguageBundle:
        """Reads a bundle and checks its files.

        Raises:
            UsageError: no bundle, or one of another kind of model.
            ModelError: a file is missing or was changed.
        """
        bundle = Bundle.load(folder, verify=verify)
        manifest = bundle.manifest
        if (language := manifest.language) is None:
            raise UsageError(f"{bundle.folder.name} is no bundle of a language model.", "`lowbit optimize FOLDER` makes one.")
        chosen = _runs(bundle, manifest.decision.chosen, language.chosen)
        full = None if language.baseline is None else _runs(bundle, manifest.baseline.id, language.baseline)
        if full is not None and full.candidate == chosen.candidate:
            full = None
        for each in filter(None, (chosen, full)):
            if not each.artifact.is_file():
                raise ModelError(f"The bundle lacks {each.artifact.name} of '{each.candidate}'.", "Copy the whole folder again.")
        return cls(bundle, chosen, full, language.context, bundle.folder / language.tokenizer, concurrency_of(language.workload))

    def runs(self, candidate: str) -> Runs:
        """What runs any of its candidates.

        Raises:
            UsageError: its artifact is not in the bundle.
        """
        language = self.bundle.manifest.language
        assert language is not None, "open asks first"
        for known in filter(None, (self.chosen, self.full)):
            if known.candidate == candidate:
                return known
        entry = language.candidates.get(candidate)
        if entry is None or entry.artifact is None or not (self.bundle.folder / entry.artifact).is_file():
            raise UsageError(
                f"The artifact of '{candidate}' is not in this bundle.", "`lowbit optimize` without --prune keeps all of them."
            )
        return _runs(self.bundle, candidate, entry)


def is_language(folder: Path) -> bool:
    """Whether a bundle is of a language model; reads its manifest alone.

    Raises:
        UsageError: no bundle.
        ModelError: `bundle.json` is damaged.
    """
    return read_manifest(folder).language is not None


def concurrency_of(workload: str) -> int:
    """
    >>> concurrency_of("prompt=512,output=128,concurrency=8"), concurrency_of("prompt=512,output=128")
    (8, 1)
    """
    words = dict(part.split("=", 1) for part in workload.split(",") if "=" in part)
    text = words.get("concurrency", "1").strip()
    return max(1, int(text)) if text.isascii() and text.isdigit() else 1


def _runs(bundle: Bundle, candidate: str, entry: LanguageVariantEntry) -> Runs:
    assert entry.artifact is not None, "a variant has an artifact"
    precision = bundle.manifest.entry(candidate).precision
    return Runs(candidate, entry.engine, bundle.folder / entry.artifact, EngineTuning(**entry.tuning.model_dump()), precision)
