"""Which files of a bundle a version holds, and the listing of them whose digest is the version's."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import FILE_NAME, digest
from lowbit.bundle.schema import Manifest
from lowbit.errors import ModelError
from lowbit.registry.blobs import not_plain

PAGES = ("report.html", "MODEL_CARD.md")
KNOWN = ("outcomes-search.npz", "outcomes-confirm.npz", "recipe.yaml", "layers.json")
"""Beside a candidate's artifact: what a server reads to know its certainty, and how it was made."""


@dataclass(frozen=True)
class Listed:
    """A file of a version.

    Attributes:
        path: Within the bundle, forward slashes.
        sha256: Of its content.
        size_bytes: Of that.
    """

    path: str
    sha256: str
    size_bytes: int


def listing_text(files: Iterable[Listed]) -> bytes:
    """The one text of a listing, by path: its SHA-256 is the digest of the version."""
    lines = [[file.path, file.sha256, file.size_bytes] for file in sorted(files, key=lambda file: file.path)]
    return json.dumps(lines, separators=(",", ":"), ensure_ascii=False).encode()


def read_listing(text: bytes) -> tuple[Listed, ...]:
    """What `listing_text` wrote.

    Raises:
        ModelError: it is none, or a path leads out of the bundle.
    """
    try:
        files = tuple(Listed(str(path), str(sha256), int(size)) for path, sha256, size in json.loads(text))
    except ValueError as error:
        raise ModelError("A listing in the registry is damaged.", "`lowbit registry verify` names the versions it belongs to.") from error
    for file in files:
        check_path(file.path)
    return files


def check_path(path: str) -> None:
    """Refuses what is no path of a file within a folder.

    Raises:
        ModelError: it is absolute, leads out, or would be another one elsewhere.
    """
    parts = path.split("/")
    if "\\" in path or "\0" in path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise ModelError(f"'{path}' is no path within a bundle.", "The bundle was made by something else; make it again.")


def files_of(bundle: Bundle) -> tuple[Listed, ...]:
    """The files of the version that answers with what a bundle ships.

    All that its manifest lists, the manifest, the pages for people, and of each candidate whose artifact is there what serving it needs.

    Raises:
        ModelError: one of them is a link or leads out of the bundle.
    """
    manifest = bundle.manifest
    paths = [entry.path for entry in manifest.files]
    paths += [page for page in (FILE_NAME, *PAGES) if (bundle.folder / page).exists()]
    for entry in manifest.candidates:
        folder = f"candidates/{entry.id}"
        own = entry.artifact is not None and entry.artifact.startswith(f"{folder}/")
        if entry.id == manifest.decision.chosen or (own and (bundle.folder / str(entry.artifact)).exists()):
            paths += [f"{folder}/{name}" for name in KNOWN if (bundle.folder / folder / name).exists()]
        if own and entry.id != manifest.decision.chosen:  # what ships is in model/ already
            paths += _beside(bundle.folder, str(entry.artifact))
    paths += _outcomes(bundle)
    return tuple(_listed(bundle.folder, path) for path in sorted(set(paths)))


def source_files(bundle: Bundle, derived: Manifest) -> tuple[Listed, ...]:
    """The files of a bundle's source version, without its manifest, which is another one than the bundle's."""
    paths = {*(entry.path for entry in derived.files), *_outcomes(bundle)}
    return tuple(_listed(bundle.folder, path) for path in sorted(paths))


def _outcomes(bundle: Bundle) -> list[str]:
    """What the baseline answered to the samples."""
    return [f"baseline/{name}" for name in KNOWN if (bundle.folder / "baseline" / name).exists()]


def _beside(folder: Path, artifact: str) -> list[str]:
    """An artifact that is there, with the weights that lie beside it."""
    if not (folder / artifact).exists():
        return []
    found = [file for file in (folder / artifact).parent.iterdir() if file.suffix not in (".npz", ".json", ".yaml")]
    return [file.relative_to(folder).as_posix() for file in found if not file.name.startswith(".")]


def _listed(folder: Path, path: str) -> Listed:
    check_path(path)
    place = folder
    for part in path.split("/"):
        place = place / part
        if place.is_symlink():
            raise not_plain(f"{path} in the bundle")
    state = place.stat()
    if not stat.S_ISREG(state.st_mode):
        raise not_plain(f"{path} in the bundle")
    return Listed(path, digest(place), state.st_size)
