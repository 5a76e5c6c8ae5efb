"""What the registry keeps, as records, and the rules for names and references."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lowbit.errors import UsageError

Kind = Literal["source", "quantized"]
Move = Literal["promote", "rollback", "set", "remove"]

CHAMPION, CHALLENGER, FALLBACK = "champion", "challenger", "fallback"
"""What answers; what is being tried; what answered before and stays warm."""

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,49}")
_SHORTEST = 4
"""Digits of a digest that a reference may be cut to."""
LONGEST_WHY = 2000


class Conflict(UsageError):
    """An alias was not where the caller believed it to be; nothing was changed.

    Attributes:
        found: Digest of the version that it names now; None: it does not exist.
    """

    def __init__(self, message: str, hint: str | None = None, *, found: str | None = None) -> None:
        super().__init__(message, hint)
        self.found = found


@dataclass(frozen=True)
class ModelVersion:
    """A registered bundle.

    Attributes:
        model: Its name.
        number: 1, 2, ... of that model, never used twice.
        digest: SHA-256 (hex) of the listing of its files, `bundle.json` included: the same digest is the same content.
        kind: "source": in the precision that it was trained in; "quantized": made from that.
        candidate: Id of what it answers with.
        precision: Of that.
        runtime: That it runs on.
        parents: Digests of the versions that it was made from.
        lineage: Where it comes from: see `lowbit.registry.lineage`.
        size_bytes: Of all its files.
        created: When it was registered, seconds since 1970.
        by: Who registered it.
    """

    model: str
    number: int
    digest: str
    kind: Kind
    candidate: str
    precision: str
    runtime: str
    parents: tuple[str, ...]
    lineage: Mapping[str, Any] = field(hash=False)
    size_bytes: int
    created: float
    by: str

    @property
    def ref(self) -> str:
        """How it is called, e.g. "fashion@3"."""
        return f"{self.model}@{self.number}"


@dataclass(frozen=True)
class Pushed:
    """What a push found or made.

    Attributes:
        source: The model in its own precision.
        quantized: What was made from it; None where the bundle keeps its baseline.
        new: Those of the two that were not there before.
    """

    source: ModelVersion
    quantized: ModelVersion | None
    new: tuple[ModelVersion, ...]

    @property
    def version(self) -> ModelVersion:
        """What the bundle ships."""
        return self.quantized or self.source


@dataclass(frozen=True)
class AliasEvent:
    """One move of an alias.

    Attributes:
        id: Rises.
        model: Of the alias.
        alias: Its name.
        before: Digest of the version that it named; None: it was not there.
        after: Digest of the version that it names from now on; None: it is gone.
        at: Seconds since 1970.
        by: Who moved it.
        why: In words.
        kind: What for.
    """

    id: int
    model: str
    alias: str
    before: str | None
    after: str | None
    at: float
    by: str
    why: str
    kind: Move


@dataclass(frozen=True)
class AuditRow:
    """One line of the audit log; each holds the digest of the line before.

    Attributes:
        id: 1, 2, ...
        at: Seconds since 1970.
        by: Who did it.
        action: What, e.g. "push".
        subject: To what, e.g. "fashion@3".
        body: The details.
        previous: `sha256` of the row before; 64 zeros in the first.
        sha256: Of all the above.
    """

    id: int
    at: float
    by: str
    action: str
    subject: str
    body: Mapping[str, Any] = field(hash=False)
    previous: str
    sha256: str


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        kind: "database", "audit", "version", "alias", "blob", "listing", "manifest", "checkout" or "signature".
        subject: What it is about, e.g. "fashion@3".
        text: A sentence for a person.
    """

    kind: str
    subject: str
    text: str


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove.

    Attributes:
        versions: They cannot be served any more; their numbers stay used.
        blobs: Number of files.
        size_bytes: Of those.
    """

    versions: tuple[ModelVersion, ...]
    blobs: int
    size_bytes: int


@dataclass(frozen=True)
class Ref:
    """A reference to a version: exactly one of the last three, or none of them for "what answers"."""

    model: str
    number: int | None = None
    digest: str | None = None
    alias: str | None = None


def parse_ref(text: str) -> Ref:
    """Reads "name", "name@champion", "name@3" or "name@sha256:abcd".

    Raises:
        UsageError: it is none of these.
    """
    name, at, rest = text.partition("@")
    checked_model(name)
    if not at:
        return Ref(name)
    if re.fullmatch(r"[0-9]{1,18}", rest):  # more digits than a column holds are no number
        return Ref(name, number=int(rest))
    if rest.startswith("sha256:"):
        digits = rest.removeprefix("sha256:")
        if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST},64}}", digits):
            raise UsageError(f"'{rest}' is no digest: sha256: and {_SHORTEST} to 64 hex digits are.", f"For example {name}@sha256:12ab.")
        return Ref(name, digest=digits)
    if not _ALIAS.fullmatch(rest):
        raise UsageError(f"'{text}' names no version.", f"Write {name}@3, {name}@champion or {name}@sha256:12ab.")
    return Ref(name, alias=rest)


def checked_model(name: str) -> str:
    """The name, if it can be a model's.

    Raises:
        UsageError: it cannot.
    """
    if not _MODEL.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a model's name.",
            "Use up to 100 letters, digits, '-', '_' and '.', a letter or digit first.",
        )
    return name


def checked_alias(name: str) -> str:
    """The name, if it can be an alias's.

    Raises:
        UsageError: it cannot.
    """
    if not _ALIAS.fullmatch(name):
        raise UsageError(f"'{name}' cannot be an alias.", "Use up to 50 small letters, digits, '-' and '_', a letter first.")
    return name


def checked_by(by: str) -> str:
    """The name of who does something, if it can stand in the audit log.

    Raises:
        UsageError: it is empty, too long, or more than a line.
    """
    if not by.strip() or len(by) > 200 or not by.isprintable():
        raise UsageError("Who does this must be said in one line of up to 200 characters.", "Say it with --by NAME.")
    return by


def checked_why(why: str) -> str:
    """The reason, if it can stand in the audit log.

    Raises:
        UsageError: it is too long, or no text: what a terminal would obey is none.
    """
    if len(why) > LONGEST_WHY:
        raise UsageError(f"The reason has {len(why):,} characters; up to {LONGEST_WHY:,} are kept.", "Say it shorter: --why TEXT.")
    if any(unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\r\t" for each in why):
        raise UsageError("The reason holds bytes that are no text.", "Write it in UTF-8, without control characters.")
    return why
