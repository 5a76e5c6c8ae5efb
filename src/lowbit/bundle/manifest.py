"""From records to `bundle.json` and back: convert, write atomically, read, migrate.

The manifest is evidence: the policy, every comparison and every measurement go in whole, so that a decision can be
replayed from the file alone (`read_manifest(...)`, then `policy_of`, `candidate_of` and `decide`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

import lowbit
from lowbit.bundle.schema import (
    ROOTS,
    SCHEMA,
    CandidateEntry,
    DataEntry,
    EnvironmentEntry,
    FileEntry,
    LanguageEntry,
    Manifest,
    PolicyEntry,
)
from lowbit.errors import Interrupted, ModelError, UsageError
from lowbit.types import Budget, Candidate, Decision, Judgement, Model, Policy

FILE_NAME = "bundle.json"
REPAIR = "Copy the bundle again, or run the same `lowbit optimize` again."

Raw = dict[str, Any]
Migration = Callable[[Raw], Raw]
MIGRATIONS: dict[str, Migration] = {"1": lambda raw: {**raw, "language": None}}
"""Schema version -> the step from it to the next one. One step at most is kept: readers accept the current schema and
the one before. ("2" brought language models.)"""


# ── records → entries ───────────────────────────────────────────────────────────────────────────────────────────────


def candidate_entry(candidate: Candidate, judgement: Judgement | None) -> CandidateEntry:
    """The manifest's entry of one candidate; `candidate_of` is its inverse.

    Args:
        candidate: With all its evidence.
        judgement: The verdict on it; None for a baseline that was not judged.
    """
    evidence = candidate.evidence
    raw = asdict(candidate)
    raw["notes"] = raw.pop("reasons")
    raw["reasons"] = judgement.reasons if judgement else ()
    raw["verdict"] = judgement.verdict if judgement else None
    raw["evidence"] = None if evidence is None else "confirm" if candidate.confirm else "search"
    for name in ("metric", "delta", "confidence_shift"):
        raw[name] = raw[raw["evidence"]][name] if evidence else None
    raw["slices"] = raw[raw["evidence"]]["slices"] if evidence else ()
    raw["agreement"] = evidence.agreement if evidence and math.isfinite(evidence.agreement) else None
    return CandidateEntry.model_validate(without_paths(raw))


def candidate_of(entry: CandidateEntry) -> Candidate:
    """The record that an entry was made from: what a decision is replayed with."""
    derived = {"evidence", "metric", "delta", "agreement", "confidence_shift", "slices"}
    raw = entry.model_dump(exclude={*derived, "verdict", "reasons", "notes"})
    return _CANDIDATE.validate_python({**raw, "reasons": entry.notes})


def policy_entry(policy: Policy) -> PolicyEntry:
    """The policy with its budget in the user's words ("1pp"); `policy_of` is its inverse."""
    budget = policy.max_drop
    points = f"{budget.value * 100:.12f}".rstrip("0").rstrip(".")
    return PolicyEntry.model_validate({**asdict(policy), "max_drop": f"{points}{'%' if budget.relative else 'pp'}"})


def policy_of(entry: PolicyEntry) -> Policy:
    """The policy that an entry was made from."""
    return Policy(**{**entry.model_dump(), "max_drop": Budget.parse(entry.max_drop)})


def decision_of(manifest: Manifest) -> Decision:
    """The decision with the judgement on every candidate."""
    entries = (manifest.baseline, *manifest.candidates)
    judgements = tuple(Judgement(entry.id, entry.verdict, entry.reasons) for entry in entries if entry.verdict)
    decision = manifest.decision
    return Decision(decision.verdict, decision.chosen, decision.reasons, decision.next_steps, judgements)


def build_manifest(
    *,
    model: Model,
    policy: Policy,
    data: DataEntry,
    environment: EnvironmentEntry,
    baseline: Candidate,
    candidates: Sequence[Candidate],
    decision: Decision,
    command: str,
    artifact: str,
    files: Sequence[FileEntry],
    preprocess: str | None = None,
    notes: Iterable[str] = (),
    created: datetime | None = None,
    form: str = "onnx",
    language: LanguageEntry | None = None,
) -> Manifest:
    """All of `bundle.json` from the run's records.

    Candidates are ordered by id, so that an interrupted and resumed run writes the same file. Absolute paths in
    sentences and in the command are cut to base names.

    Args:
        model: The source model.
        policy: What the user asked for.
        data: Fingerprints and sizes of the calibration and validation samples.
        environment: What the numbers hold for.
        baseline: The source model on the baseline runtime (its entry is left out of `candidates` if it is there too).
        candidates: Everything that was tried, failures too.
        decision: With a judgement for every candidate.
        command: As the user typed it.
        artifact: What ships, relative to the bundle, e.g. "model/model.onnx".
        files: Of `model/`, `baseline/` and the preprocessing; see `file_entries`.
        preprocess: "preprocess.yaml" where there is one.
        notes: What else a reader should know about data and method.
        created: Defaults to now.
        form: Of the source model: "onnx" or "huggingface".
        language: Of a language model.

    Raises:
        pydantic.ValidationError: the records contradict each other (an own invariant, never a user's mistake).
    """
    judged = {judgement.id: judgement for judgement in decision.judgements}
    tried = sorted((c for c in candidates if c.id != baseline.id), key=lambda c: c.id)
    raw = {
        "schema": SCHEMA,
        "lowbit_version": lowbit.__version__,
        "created": (created or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "source": {
            "path": model.path.name,
            "sha256": model.sha256,
            "format": form,
            "parameters": model.parameters,
            "size_bytes": model.size_bytes,
            "exported_from": asdict(model.origin) if model.origin else None,
        },
        "decision": {key: value for key, value in asdict(decision).items() if key != "judgements"},
        "model": {"artifact": artifact, "inputs": [asdict(t) for t in model.inputs], "outputs": [asdict(t) for t in model.outputs]},
        "preprocess": preprocess,
        "notes": tuple(notes),
    }
    return Manifest.model_validate(
        {
            **without_paths(raw),
            "data": without_paths(data.model_dump()),
            "environment": environment,
            "language": language,
            "policy": policy_entry(policy),
            "baseline": candidate_entry(baseline, judged.get(baseline.id)),
            "candidates": tuple(candidate_entry(candidate, judged.get(candidate.id)) for candidate in tried),
            "files": tuple(sorted(files, key=lambda file: file.path)),
        }
    )


def file_entries(folder: Path, paths: Iterable[str]) -> tuple[FileEntry, ...]:
    """Digest and size of files in a bundle; a folder stands for all the files in it.

    Args:
        folder: The bundle.
        paths: Relative to it, e.g. "model", "baseline", "preprocess.yaml".
    """
    found = [file for path in paths for file in ([folder / path] if (folder / path).is_file() else sorted((folder / path).rglob("*")))]
    return tuple(
        FileEntry(path=file.relative_to(folder).as_posix(), sha256=digest(file), size_bytes=file.stat().st_size)
        for file in found
        if file.is_file() and not file.name.startswith(".")  # what a killed run was writing
    )


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    state = file.stat()
    return _digest(file, state.st_ino, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)  # a search writes its manifest after every candidate, and models are large
def _digest(file: Path, inode: int, modified_ns: int, size: int) -> str:  # noqa: ARG001
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_CANDIDATE = TypeAdapter(Candidate)
_PATH = re.compile(r"(?<![\w./-])(?:(?:file://)?/(?P<root>\w[\w.-]*)|~(?=/)|[A-Za-z]:\\|\\\\)(?P<rest>[^\s'\"`,;:()\[\]<>]*)")


def without_paths(value: Any) -> Any:
    """The same with every absolute path in every string cut to its base name."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(without_paths(item) for item in value)
    if not isinstance(value, str) or not re.search(r"[/\\~]", value):
        return value
    # Home and working folder first: they may contain spaces, and the home's base name is the user's.
    for folder, short in ((f"{Path.cwd()}/", ""), (str(Path.home()), "~")):
        if len(folder) > 2:
            value = value.replace(folder, short)
    return _PATH.sub(_base_name, value)


def _base_name(match: re.Match[str]) -> str:
    root, rest = match["root"], match["rest"]
    # "/layer1/conv/Conv" is a node of a graph; a path starts at a folder that exists, here or on usual machines.
    if root is not None and not re.fullmatch(ROOTS, root) and not Path("/", root).is_dir():
        return match[0]
    return PurePosixPath((rest or root or "").replace("\\", "/")).name or root or "~"


# ── entries → file → entries ────────────────────────────────────────────────────────────────────────────────────────


def to_json(manifest: Manifest) -> str:
    """The text of `bundle.json`: the schema's key order, short parts on one line, null where a number is undefined."""
    return _pretty(manifest.model_dump(mode="json", by_alias=True), 0) + "\n"


def _pretty(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    scalars = isinstance(value, list) and not any(isinstance(item, list | dict | str) for item in value)
    if len(flat) <= 110 or scalars or not isinstance(value, list | dict):
        return flat
    indent, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict):
        body = [f"{json.dumps(key, ensure_ascii=False)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(indent + line for line in body) + f"\n{end}}}"
    return "[\n" + ",\n".join(indent + _pretty(item, depth + 1) for item in value) + f"\n{end}]"


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Writes `bundle.json` so that a reader sees the old file or the whole new one, never a part."""
    return write_atomic(folder / FILE_NAME, to_json(manifest))


def write_atomic(file: Path, text: str) -> Path:
    """Writes text to a temporary file beside `file`, syncs it to disk, and renames it into place.

    Raises:
        Interrupted: the disk is full; nothing was changed.
        UsageError: the folder cannot be written to.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a server under another user from reading the bundle
        temporary.replace(file)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Interrupted(f"The disk is full: {file.name} was not written.", "Free some space and run the same command.") from error
        raise UsageError(f"{file.name} cannot be written to {file.parent}: {error.strerror}.", "Choose another --out folder.") from error
    return file


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        UsageError: no such folder, not a bundle, or written by a newer lowbit.
        ModelError: `bundle.json` is truncated or damaged.
    """
    file = folder / FILE_NAME
    advice = "Give the folder that `lowbit optimize --out` wrote."
    if not folder.exists():
        raise UsageError(f"There is no folder {folder}.", advice)
    if not file.is_file():
        raise UsageError(f"{folder} is not a bundle: it has no {FILE_NAME}.", advice)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is not whole JSON: {error}.", REPAIR) from error
    if not isinstance(raw, dict) or "schema" not in raw:
        raise UsageError(f"{file} is not lowbit's: it names no schema.", advice)
    try:
        return Manifest.model_validate(migrate(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ModelError(
            f"{file} does not follow schema {SCHEMA}: {where}: {first['msg']}{more}.",
            f"It was damaged or edited. {REPAIR}",
        ) from error


def migrate(raw: Raw, migrations: Mapping[str, Migration] = MIGRATIONS, current: str = SCHEMA) -> Raw:
    """The same manifest in the current schema.

    Args:
        raw: As it was read; not changed.
        migrations: Version -> the step from it to the next one.
        current: The version to arrive at.

    Raises:
        UsageError: the version is newer, or older than the one before.
    """
    version = raw.get("schema")
    if version == current:
        return raw
    if isinstance(version, str) and version in migrations:
        return {**migrations[version](dict(raw)), "schema": current}
    readable = " and ".join(f"'{known}'" for known in (*migrations, current))
    newer = isinstance(version, str) and version.isdigit() and int(version) > int(current)
    hint = "Upgrade lowbit: pip install -U lowbit." if newer else "Run `lowbit optimize` again to make a bundle of this version."
    raise UsageError(f"This bundle has schema '{version}'; lowbit {lowbit.__version__} reads {readable}.", hint)
