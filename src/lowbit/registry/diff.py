"""What differs between two versions: files, lineage, score, latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.registry.listing import Listed
from lowbit.registry.records import ModelVersion

APART = ("score", "latency_ms")
"""Parts of the lineage that are shown by themselves."""


@dataclass(frozen=True)
class Change:
    """Something that one has and the other has not, or has otherwise.

    Attributes:
        what: A path, a key of the lineage, or what was measured.
        before: In the first version; None: it is not there.
        after: In the second.
    """

    what: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    """Two versions beside each other.

    Attributes:
        files: Sizes in bytes, of files with other content.
        lineage: By dotted key.
        score: Of the chosen candidates, as their bundles have it.
        latency_ms: Median by batch size, as measured then.
        notes: What to mind when reading the numbers.
    """

    files: tuple[Change, ...]
    lineage: tuple[Change, ...]
    score: tuple[Change, ...]
    latency_ms: tuple[Change, ...]
    notes: tuple[str, ...]


def difference(first: ModelVersion, second: ModelVersion, files: tuple[Sequence[Listed], Sequence[Listed]]) -> Difference:
    """What differs.

    Args:
        first: A version.
        second: Another one.
        files: Of the first and of the second.
    """
    before, after = first.lineage, second.lineage
    notes = []
    if _where(before) != _where(after):
        notes.append("They were timed on different machines or with other versions of the tools: their milliseconds do not compare.")
    elif before.get("made") != after.get("made"):
        notes.append("They were timed in different runs: trust a difference in milliseconds only where it is large.")
    if before["validation"]["sha256"] != after["validation"]["sha256"]:
        notes.append("They were scored on different samples: their scores do not compare.")
    return Difference(
        files=tuple(_files(*files)),
        lineage=tuple(_changes(dict(_flat(_rest(before))), dict(_flat(_rest(after))))),
        score=tuple(_changes(_score(before), _score(after), same=True)),
        latency_ms=tuple(_changes(before.get("latency_ms") or {}, after.get("latency_ms") or {}, same=True)),
        notes=tuple(notes),
    )


def _files(first: Sequence[Listed], second: Sequence[Listed]) -> Iterator[Change]:
    before, after = {file.path: file for file in first}, {file.path: file for file in second}
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path), after.get(path)
        if one is None or other is None or one.sha256 != other.sha256:
            yield Change(path, one and one.size_bytes, other and other.size_bytes)


def _rest(lineage: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in lineage.items() if key not in APART}


def _where(lineage: Mapping[str, Any]) -> tuple[Any, Any]:
    return lineage.get("hardware"), lineage.get("tools")


def _score(lineage: Mapping[str, Any]) -> dict[str, Any]:
    score = lineage.get("score") or {}
    delta = score.get("delta") or {}
    found = {score.get("name", "score"): score.get("value"), "agreement": score.get("agreement")}
    return found | {"worse than the baseline": delta.get("value"), "at most (interval)": delta.get("ci_high")}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], *, same: bool = False) -> Iterator[Change]:
    """By key in the first one's order; those that are alike only if `same`."""
    for key in dict.fromkeys((*before, *after)):
        if same or before.get(key) != after.get(key):
            yield Change(key, before.get(key), after.get(key))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf."""
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else name)
