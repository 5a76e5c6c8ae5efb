"""What an answer belongs to: a key is a digest of the preprocessed tensors within a namespace of model, preprocessing and variant."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import digest
from lowbit.types import Feeds

VERSION = 1
"""Of keys and values: another number makes everything that is kept unknown."""


def namespace(bundle: Bundle, candidate: str, how: str = "") -> bytes:
    """Digest of all that an answer follows from beside its inputs.

    Args:
        bundle: It comes from.
        candidate: Id of the variant that is asked first.
        how: What else is done to its answers, e.g. the threshold below which they are asked again.

    Returns:
        32 bytes: of the artifact and its preprocessing, the runtime with its version and tuning, and `how`.
    """
    entry = bundle.manifest.entry(candidate)
    shipped = candidate == bundle.manifest.decision.chosen
    artifact = bundle.manifest.model.artifact if shipped else entry.artifact
    steps = None if bundle.manifest.preprocess is None else bundle.folder / bundle.manifest.preprocess
    parts = [f"{VERSION}", how, candidate, entry.runtime, _installed(entry.runtime), entry.tuning.model_dump_json()]
    parts += _files((bundle.folder / artifact).parent) if artifact else []
    parts.append(digest(steps) if steps else "")
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _files(folder: Path) -> list[str]:
    """The artifact with whatever weights lie beside it."""
    return [f"{file.name}={digest(file)}" for file in sorted(folder.iterdir()) if file.is_file() and file.suffix not in (".npz", ".json")]


@lru_cache
def _installed(runtime: str) -> str:
    try:
        return metadata.version(runtime)
    except metadata.PackageNotFoundError:
        return ""


def key(space: bytes, feeds: Feeds) -> bytes:
    """SHA-256 over the namespace and every tensor with its name, type and shape; 32 bytes.

    A weaker and quicker hash would let a client make two inputs that share a key, and so choose another client's answer.
    """
    found = hashlib.sha256(space)
    for name in sorted(feeds):
        array = feeds[name]
        found.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype == object:
            for value in array.ravel():
                raw = value if isinstance(value, bytes) else str(value).encode()
                found.update(b"%d:" % len(raw) + raw)
        else:
            found.update(np.ascontiguousarray(array).data if array.size else b"")
    return found.digest()
