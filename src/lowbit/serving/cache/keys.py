"""What an answer belongs to: a namespace of model, preprocessing and variant, in which `framing.digest` of the tensors is the key."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import PurePosixPath

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import digest
from lowbit.bundle.schema import Manifest

VERSION = 2
"""Of keys and values: another number makes everything that is kept unknown."""


def namespace(manifest: Manifest, candidate: str, digests: Mapping[str, str], how: str = "") -> bytes:
    """Digest of all that an answer follows from beside its inputs.

    Args:
        manifest: Of the bundle.
        candidate: Id of the variant that is asked first.
        digests: SHA-256 of the files that were loaded, by their paths within the bundle: those on the disk may be another version's by now.
        how: What else is done to its answers, e.g. the threshold below which they are asked again.

    Returns:
        32 bytes: of the artifact and its preprocessing, the runtime with its version and tuning, and `how`.
    """
    entry = manifest.entry(candidate)
    parts = [f"{VERSION}", how, candidate, entry.runtime, _installed(entry.runtime), entry.tuning.model_dump_json()]
    if (artifact := artifact_of(manifest, candidate)) is not None:
        parts += [f"{PurePosixPath(file).name}={digests[file]}" for file in sorted(digests) if _beside(file, artifact)]
    parts.append(digests.get(manifest.preprocess or "", ""))
    return hashlib.sha256("\0".join(parts).encode()).digest()


def unlisted(bundle: Bundle, candidates: Collection[str]) -> dict[str, str]:
    """Digests of the artifacts that the manifest does not list: of candidates that neither ship nor are the baseline. Reads the disk."""
    listed = {entry.path for entry in bundle.manifest.files}
    found = {}
    for candidate in candidates:
        artifact = artifact_of(bundle.manifest, candidate)
        if artifact is None or artifact in listed:
            continue
        for file in (bundle.folder / artifact).parent.iterdir():
            path = file.relative_to(bundle.folder).as_posix()
            if file.is_file() and _beside(path, artifact):
                found[path] = digest(file)
    return found


def artifact_of(manifest: Manifest, candidate: str) -> str | None:
    """Path of what is run, within the bundle."""
    return manifest.model.artifact if candidate == manifest.decision.chosen else manifest.entry(candidate).artifact


def _beside(file: str, artifact: str) -> bool:
    """Whether a file is the artifact, or weights that lie beside it."""
    path = PurePosixPath(file)
    return path.parent == PurePosixPath(artifact).parent and path.suffix not in (".npz", ".json")


@lru_cache
def _installed(runtime: str) -> str:
    try:
        return metadata.version(runtime)
    except metadata.PackageNotFoundError:
        return ""
