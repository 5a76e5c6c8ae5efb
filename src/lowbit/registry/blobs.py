"""Files by the SHA-256 of their content: written once, never changed, checked whenever they are read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lowbit.errors import Interrupted, LowbitError, ModelError, UsageError

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Blobs:
    """The folders `blobs/`, and `incoming/` for what is not whole yet."""

    def __init__(self, folder: Path) -> None:
        """Of the registry at a folder."""
        self.folder = folder / "blobs"
        self.incoming = folder / "incoming"
        self._lock = folder / "lock"
        self._checkouts_lock = folder / "checkouts.lock"

    def path(self, sha256: str) -> Path:
        """Where content with this digest is, if it is there."""
        return self.folder / sha256[:2] / sha256

    def put(self, content: bytes) -> str:
        """Keeps bytes; returns their digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self._whole(sha256):
            self._write(iter((content,)), sha256, "")
        return sha256

    def put_file(self, file: Path, sha256: str) -> None:
        """Keeps a copy of a file.

        Raises:
            ModelError: it is no plain file, or its digest is not the one given.
        """
        if not self._whole(sha256):
            with open_plain(file) as stream:
                self._write(iter(lambda: stream.read(CHUNK), b""), sha256, file.name)

    def read(self, sha256: str) -> bytes:
        """The content with this digest.

        Raises:
            ModelError: it is gone, or it was changed.
        """
        content = b"".join(self.chunks(sha256))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise damaged(sha256)
        return content

    def chunks(self, sha256: str) -> Iterator[bytes]:
        """The content, part by part, not checked: who reads it hashes it.

        Raises:
            ModelError: it is gone.
        """
        try:
            with open_plain(self.path(sha256)) as stream:
                yield from iter(lambda: stream.read(CHUNK), b"")
        except FileNotFoundError as error:
            raise ModelError(f"The registry lacks the content {sha256[:12]}.", "Push the bundle again that it came from.") from error

    def wrong(self, sha256: str) -> str | None:
        """What is wrong with it, in words; None if nothing is."""
        try:
            seen = hashlib.sha256()
            for chunk in self.chunks(sha256):
                seen.update(chunk)
        except ModelError as error:
            return error.message
        except OSError as error:
            return f"The content {sha256[:12]} cannot be read: {error.strerror}."
        return None if seen.hexdigest() == sha256 else damaged(sha256).message

    def all(self) -> Iterator[Path]:
        """Every file there."""
        yield from (file for folder in sorted(self.folder.glob("??")) for file in sorted(folder.iterdir()))

    @contextlib.contextmanager
    def held(self, *, alone: bool = False) -> Iterator[None]:
        """Nothing is collected meanwhile; `alone`: nothing is added either. Ends with the process, whatever happens to it."""
        with _locked(self._lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def checking_out(self) -> Iterator[None]:
        """Nobody else makes a checkout meanwhile. Ends with the process, too."""
        with _locked(self._checkouts_lock, fcntl.LOCK_EX):
            yield

    def _whole(self, sha256: str) -> bool:
        """There and as it should be; what is damaged is replaced by whoever brings it again."""
        return self.path(sha256).is_file() and self.wrong(sha256) is None

    def _write(self, chunks: Iterator[bytes], sha256: str, name: str) -> None:
        target = self.path(sha256)
        with writing("the bundle"):
            self.incoming.mkdir(exist_ok=True)
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder)
        temporary = self.incoming / uuid.uuid4().hex
        try:
            with writing("the bundle"):
                seen = hashlib.sha256()
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as stream:
                    for chunk in chunks:
                        seen.update(chunk)
                        stream.write(chunk)
                    stream.flush()
                    os.fchmod(stream.fileno(), 0o444)
                    os.fsync(stream.fileno())
                if seen.hexdigest() != sha256:
                    raise ModelError(
                        f"{name} was changed while it was read: its digest differs.", "Push the bundle again once it is still."
                    )
                temporary.replace(target)
                sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def open_plain(file: Path) -> BinaryIO:
    """Opens a plain file to read; never through a link at its end.

    Raises:
        ModelError: it is a link, a folder or a device.
        FileNotFoundError: there is none.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise not_plain(file.name) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_plain(file.name)
    return os.fdopen(descriptor, "rb")


def not_plain(name: str) -> ModelError:
    """The error for a link, a folder or a device where a file should be."""
    return ModelError(
        f"{name} is no plain file.", "A bundle in a registry holds plain files alone; copy the bundle with its links resolved."
    )


def damaged(sha256: str) -> ModelError:
    """The error for content that is not what its name says."""
    return ModelError(f"The content {sha256[:12]} was changed after it was registered.", "Push the bundle again that it came from.")


def sync_folder(folder: Path) -> None:
    """Makes names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(lock: Path, operation: int) -> Iterator[None]:
    """Of threads as of processes: each call opens the file for itself."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # read-only, the folder or the whole disk
        if not lock.exists():
            yield  # nobody can collect or write anything here, either
            return
        descriptor = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(what: str, where: str = "to the registry") -> Iterator[None]:
    """A full disk or a read-only folder in words.

    Args:
        what: Subject of the sentence, e.g. "the bundle".
        where: Where it was to be written.
    """
    try:
        yield
    except LowbitError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise Interrupted(f"The disk is full: {what} was not written {where}.", "Free some space and run it again.") from error
        raise UsageError(
            f"{what[:1].upper()}{what[1:]} could not be written {where}: {error.strerror}.", "Check who may write there."
        ) from error
