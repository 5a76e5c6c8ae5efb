"""Which candidate of a bundle other targets start from, and what lies beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import LowbitError, UsageError, unknown
from lowbit.recipe import Recipe

if TYPE_CHECKING:
    from lowbit.bundle.bundle import Bundle
    from lowbit.bundle.schema import CandidateEntry
    from lowbit.compress.calibrate import CalibrationStats

STATIC = ("static", "qat", "prune", "onnxruntime-defaults")
"""Methods whose artifacts are pairs on tensors of the prepared graph."""

_OTHERS = ("nncf",)
"""Methods that leave pairs, too, but may rewrite the graph around them: taken where they ship, or where they are named."""

_BITS = frozenset({"int8", "uint8", "int16", "uint16"})

_SHIPPABLE = {"ship": 0, "provisional": 1}


@dataclass(frozen=True)
class Source:
    """A candidate that has a table.

    Attributes:
        id: Of the candidate.
        artifact: Its QDQ file.
        recipe: What it was made by.
        stats: What calibration saw of the prepared graph.
        instead: What to do where this one will not do: a hint.
    """

    id: str
    artifact: Path
    recipe: Recipe
    stats: CalibrationStats
    instead: str


def find_source(bundle: Bundle, candidate: str | None) -> Source:
    """The candidate of that id; else the one that ships where it has a table; else the best that has.

    Raises:
        UsageError: a language model, no such candidate, none with a table, an artifact that was pruned, no statistics.
    """
    if bundle.manifest.language is not None:
        raise UsageError(
            "This bundle is of a language model, whose formats its own engines make; other targets start from a static INT8 table.",
            "Its artifact runs as it is: bundle.language(), or `lowbit serve`.",
        )
    usable = ranked(bundle)
    if candidate is not None:
        entry = _named(bundle, candidate)
        _check_has_table(bundle, entry, usable)
    elif usable:
        entry = usable[0]
    else:
        raise UsageError(
            "No candidate of this bundle is static INT8 with its artifact still there, and only those have a table of grids.",
            "Optimize with a static recipe and without --prune: lowbit optimize MODEL --recipe int8-static-mse --data DATA.",
        )
    others = [other.id for other in usable if other.id != entry.id and _recipe(bundle, other).method in STATIC]
    instead = f"Take another candidate: --candidate {others[0]}." if others else "Optimize again with --recipe int8-static-mse."
    return Source(entry.id, bundle.artifact(entry.id), _recipe(bundle, entry), _statistics(bundle), instead)


def ranked(bundle: Bundle) -> list[CandidateEntry]:
    """Candidates with a table, the one to take first: what ships, then by verdict, then by its cost in the metric; dropped ones last."""
    chosen = bundle.manifest.decision.chosen

    def order(entry: CandidateEntry) -> tuple[bool, bool, int, int, float, str]:
        delta = entry.delta.value if entry.delta is not None and not math.isnan(entry.delta.value) else math.inf
        foreign = int(_recipe(bundle, entry).method not in STATIC)
        return entry.id != chosen, entry.status == "dropped", foreign, _SHIPPABLE.get(entry.verdict or "", 2), delta, entry.id

    return sorted((entry for entry in bundle.manifest.candidates if _why_not(bundle, entry) is None), key=order)


def _named(bundle: Bundle, candidate: str) -> CandidateEntry:
    entries = {entry.id: entry for entry in (bundle.manifest.baseline, *bundle.manifest.candidates)}
    if candidate not in entries:
        raise unknown("candidate", candidate, entries)
    return entries[candidate]


def _check_has_table(bundle: Bundle, entry: CandidateEntry, usable: list[CandidateEntry]) -> None:
    problem = _why_not(bundle, entry)
    if problem is not None:
        names = ", ".join(other.id for other in usable[:4])
        raise UsageError(
            f"'{entry.id}' cannot be taken to other targets: {problem}.",
            f"Candidates that can: {names}." if names else "Optimize again with --recipe int8-static-mse and without --prune.",
        )


def _why_not(bundle: Bundle, entry: CandidateEntry) -> str | None:
    """Why a candidate has no table that can be read; None where it has one."""
    if entry.status == "failed":  # one that was dropped, too slow for this machine say, may be what another target wants
        return "it failed"
    recipe = _recipe(bundle, entry)
    if recipe.method not in (*STATIC, *_OTHERS) or recipe.activations is None or recipe.activations.dtype not in _BITS:
        return f"it was made by '{recipe.name}', and only static INT8 has a table of grids"
    if not (_folder(bundle, entry) / "parameters.json").is_file():
        return "its table (parameters.json) is not in the bundle: an older lowbit wrote it"
    try:
        artifact = bundle.artifact(entry.id)
    except LowbitError:
        return "its artifact was pruned"
    return None if artifact.suffix == ".onnx" and artifact.is_file() else f"its artifact is {artifact.name}, not an ONNX file"


def _folder(bundle: Bundle, entry: CandidateEntry) -> Path:
    return bundle.folder / "candidates" / entry.id


def _recipe(bundle: Bundle, entry: CandidateEntry) -> Recipe:
    from lowbit.recipe import QuantSpec

    file = _folder(bundle, entry) / "recipe.yaml"
    return Recipe.from_yaml(file.read_text()) if file.is_file() else Recipe(entry.recipe, "none", QuantSpec("fp32"))


def _statistics(bundle: Bundle) -> CalibrationStats:
    from lowbit.compress.calibrate import CalibrationStats

    file = bundle.folder / "calibration" / "stats.npz"
    if not file.is_file():
        raise UsageError(
            "The bundle has no calibration/stats.npz, from which tensors without a grid get one: an older lowbit wrote it.",
            "Optimize again with this version.",
        )
    return CalibrationStats.load(file)
