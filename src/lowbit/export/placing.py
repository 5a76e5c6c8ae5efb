"""Put what was written in its place: made beside it, then moved there; whole or not at all, and what stood there stays where that fails."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.errors import Interrupted, UsageError


@contextmanager
def made_beside(out: Path) -> Iterator[Path]:
    """A scratch folder on the same disk as `out`, which is gone afterwards.

    Raises:
        Interrupted: the disk is full.
        UsageError: nothing can be written there.
    """
    made: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield made
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Interrupted("The disk is full: nothing was exported.", "Free some space and run the same command.") from error
        raise UsageError(f"{out} cannot be written: {error.strerror or error}.", "Choose another --out folder.") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def move(made: Path, place: Path, old: Path) -> None:
    """Moves a file or folder to its place; what stood there goes to `old`, and comes back where the move fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(old)
    try:
        made.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise
