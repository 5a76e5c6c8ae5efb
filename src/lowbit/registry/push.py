"""A bundle into the registry: its files first, then one transaction that makes them versions."""

from __future__ import annotations

import re
import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import FILE_NAME, to_json
from lowbit.bundle.schema import Manifest
from lowbit.bundle.source import source_manifest
from lowbit.registry import audit, versions
from lowbit.registry.blobs import Blobs
from lowbit.registry.lineage import lineage_of
from lowbit.registry.listing import Listed, files_of, listing_text, source_files
from lowbit.registry.records import Kind, ModelVersion, Pushed


@dataclass(frozen=True)
class Draft:
    """A version that has no number yet; its files are kept already.

    Attributes:
        version: All but number and parents.
        files: It consists of.
    """

    version: ModelVersion
    files: tuple[Listed, ...]


def default_name(bundle: Bundle) -> str:
    """The source file's name without its ending, as a model's name: what is optimized again is another version of the same model."""
    stem = Path(bundle.manifest.source.path).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "model"


def draft_source(blobs: Blobs, bundle: Bundle, model: str, by: str) -> Draft:
    """Keeps the files of a bundle's source model."""
    derived = source_manifest(bundle.manifest)
    files = source_files(bundle, derived)
    for file in files:
        blobs.put_file(bundle.folder / file.path, file.sha256)
    text = to_json(derived).encode()
    manifest = Listed(FILE_NAME, blobs.put(text), len(text))
    return _draft(blobs, derived, (*files, manifest), model, "source", by)


def draft_quantized(blobs: Blobs, bundle: Bundle, model: str, by: str) -> Draft:
    """Keeps the files of what a bundle ships."""
    files = files_of(bundle)
    for file in files:
        blobs.put_file(bundle.folder / file.path, file.sha256)
    return _draft(blobs, bundle.manifest, files, model, "quantized", by)


def _draft(blobs: Blobs, manifest: Manifest, files: tuple[Listed, ...], model: str, kind: Kind, by: str) -> Draft:
    chosen = manifest.chosen
    version = ModelVersion(
        model=model,
        number=0,
        digest=blobs.put(listing_text(files)),
        kind=kind,
        candidate=chosen.id,
        precision=chosen.precision,
        runtime=chosen.runtime,
        parents=(),
        lineage=lineage_of(manifest, {file.path: file.sha256 for file in files}),
        size_bytes=sum(file.size_bytes for file in files),
        created=time.time(),
        by=by,
    )
    return Draft(version, files)


def register(db: sqlite3.Connection, source: Draft, quantized: Draft | None) -> Pushed:
    """Makes drafts versions, or finds those that are there already; within a transaction."""
    parent = versions.find_source(db, source.version.model, source.version.lineage)
    new = []
    if parent is None:
        parent = _add(db, source, ())
        new.append(parent)
    if quantized is None:
        return Pushed(parent, None, tuple(new))
    child = versions.find(db, quantized.version.model, quantized.version.digest)
    if child is None:
        child = _add(db, quantized, (parent.digest,))
        new.append(child)
    return Pushed(parent, child, tuple(new))


def _add(db: sqlite3.Connection, draft: Draft, parents: tuple[str, ...]) -> ModelVersion:
    version = replace(draft.version, number=versions.next_number(db, draft.version.model), parents=parents)
    versions.insert(db, version)
    body: dict[str, Any] = {
        "digest": version.digest,
        "kind": version.kind,
        "parents": list(parents),
        "files": len(draft.files),
        "size_bytes": version.size_bytes,
        "record": versions.record_of(version),
    }
    audit.append(db, "push", version.ref, body, version.by, version.created)
    return version
