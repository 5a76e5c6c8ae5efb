"""A version as a folder that a server can load: copied out of the blobs, every byte checked."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from lowbit.bundle.manifest import FILE_NAME
from lowbit.errors import ModelError
from lowbit.registry.blobs import CHUNK, Blobs, damaged, open_plain, writing
from lowbit.registry.listing import Listed, read_listing


def listing_of(blobs: Blobs, digest: str) -> tuple[Listed, ...]:
    """The files of a version, by its digest.

    Raises:
        ModelError: the listing is gone or was changed.
    """
    return read_listing(blobs.read(digest))


def check_out(blobs: Blobs, root: Path, digest: str) -> Path:
    """The folder of a version, made if it is not there, made again if it is not as it should be.

    Args:
        blobs: Of the registry.
        root: Folder of all checkouts.
        digest: Of the version.

    Raises:
        ModelError: its content was changed or is gone; no folder is left behind.
        UsageError: the registry cannot be written to, and the folder is not there.
        Interrupted: the disk is full.
    """
    files = listing_of(blobs, digest)
    target = root / digest
    if _whole(target, files):
        return target
    with blobs.checking_out():  # one at a time, or one would take away what another was just given
        if _whole(target, files):
            return target
        fresh = root / f".{uuid.uuid4().hex}"
        try:
            with writing("a checkout"):
                _fill(blobs, files, fresh)
                _take_away(target)
                fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        if (wrong := differing(target, files)) is not None:
            raise ModelError(f"The checkout keeps being changed: {wrong}", "Something writes to the registry's folder; find out what.")
    return target


def export(blobs: Blobs, digest: str, target: Path) -> None:
    """Writes a version's files to a new folder outside the registry.

    Raises:
        ModelError: its content was changed or is gone; no folder is left behind.
    """
    files = listing_of(blobs, digest)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with writing("the bundle", f"to {target}"):
            _fill(blobs, files, fresh, mode=0o644)
            fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _whole(folder: Path, files: Sequence[Listed]) -> bool:
    return folder.is_dir() and differing(folder, files) is None


def differing(folder: Path, files: Sequence[Listed]) -> str | None:
    """What in a checked-out folder is not as it was registered, in words; None if all is."""
    if folder.is_symlink():
        return "it is a link."
    try:
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    except OSError:  # a damaged one, which somebody takes away at this moment
        return "it is being taken away."
    expected = {file.path: file for file in files}
    if extra := sorted(there - expected.keys()):
        return f"{extra[0]} does not belong to it."
    for path, file in expected.items():
        try:
            with open_plain(folder / path) as stream:
                seen = hashlib.sha256()
                for chunk in iter(lambda: stream.read(CHUNK), b""):
                    seen.update(chunk)
                if seen.hexdigest() != file.sha256:
                    return f"{path} was changed."
        except ModelError as error:
            return error.message
        except OSError:
            return f"{path} is missing."
    return None


def _fill(blobs: Blobs, files: Sequence[Listed], folder: Path, mode: int = 0o444) -> None:
    """Candidates with the same artifact share one file, as they do in a bundle."""
    folder.mkdir(parents=True)
    written: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: file.path == FILE_NAME):  # the manifest last
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.sha256 in written:
            target.hardlink_to(written[file.sha256])
            continue
        seen = hashlib.sha256()
        with target.open("xb") as stream:
            for chunk in blobs.chunks(file.sha256):
                seen.update(chunk)
                stream.write(chunk)
        if seen.hexdigest() != file.sha256:
            raise damaged(file.sha256)
        target.chmod(mode)
        written[file.sha256] = target


def _take_away(folder: Path) -> None:
    """At once, and then file by file: whoever has the files open keeps them."""
    aside = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return  # the usual case: there was none
    if aside.is_symlink():
        aside.unlink(missing_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
