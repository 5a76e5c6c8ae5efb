"""A candidate that takes the whole process with it cannot be counted by that process: whoever starts next must know.

While a server holds a candidate, a file with its name is locked. A lock goes with its process, the file does not: a file that nobody has
locked is of a server that died. One death may have any reason; several early ones during the same rollout are blamed on the candidate.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from lowbit.errors import ModelError

try:
    import fcntl
except ImportError:  # no such locks: nothing is noticed
    fcntl = None  # type: ignore[assignment]

DEATHS = 3
EARLY_S = 600.0
"""A server that died within this time of loading the candidate."""
TOO_MANY = "servers died with it"


class Deaths:
    """Of the candidates that one server holds."""

    def __init__(self, folder: Path, server: str) -> None:
        """Holds none.

        Args:
            folder: That all servers of a registry on this machine use; made when it is needed.
            server: This one's name.
        """
        self._folder, self._server = folder, server
        self._held: dict[str, IO[bytes]] = {}

    def begin(self, rollout: str) -> None:
        """A candidate is about to be loaded. A disk that cannot be written to is no reason not to.

        Raises:
            ModelError: too many servers have died with it.
        """
        if fcntl is None or rollout in self._held:
            return
        folder = self._folder / rollout
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if sum(_died_early(file) for file in folder.iterdir()) >= DEATHS:
                raise ModelError(f"{DEATHS} {TOO_MANY} within {EARLY_S / 60:.0f} minutes of loading it.")
            held = (folder / self._server).open("wb")
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._held[rollout] = held

    def beat(self) -> None:
        """Still alive: the file's time tells later when that was last so."""
        for held in list(self._held.values()):
            with contextlib.suppress(OSError, ValueError):  # it may be let go just now, on the event loop
                held.write(b".")
                held.flush()

    def end(self, rollout: str) -> None:
        """The candidate is not held any more, and nothing happened."""
        held = self._held.pop(rollout, None)
        if held is None:
            return
        with contextlib.suppress(OSError):
            Path(held.name).unlink()
        held.close()
        with contextlib.suppress(OSError):
            (self._folder / rollout).rmdir()

    def close(self) -> None:
        """The server ends as it should."""
        for rollout in list(self._held):
            self.end(rollout)


def _died_early(file: Path) -> bool:
    """Whether the server of this file is gone, and did not live long: it wrote a byte a second."""
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return os.fstat(stream.fileno()).st_size < EARLY_S
