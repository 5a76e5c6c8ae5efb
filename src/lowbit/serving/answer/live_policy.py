"""The routing policy in force: its file is read again when it changes, and flags can be turned without it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from lowbit.bundle.manifest import write_atomic
from lowbit.errors import LowbitError, UsageError, unknown
from lowbit.serving.answer.routing import RoutingPolicy, share

POLL_S = 1.0
FLAGS = "flags.json"
log = logging.getLogger("lowbit.serving")


class LivePolicy:
    """Holds the policy; requests read `now`.

    Flags that were turned here win over the file's until they are turned back, also after the file changed, and, with a state folder, after
    a restart.

    Attributes:
        now: In force.
        file: Where it is read from; None where it is fixed.
        failed: Times a changed file was not taken, because it is wrong.
        checks: Asked before a policy is taken; they raise UsageError.
    """

    def __init__(self, policy: RoutingPolicy | None = None, file: Path | None = None, state: Path | None = None) -> None:
        """Reads the file, if there is one.

        Raises:
            UsageError: it cannot be read, or is wrong.
        """
        self.file, self.failed = file, 0
        self.checks: list[Callable[[RoutingPolicy], None]] = []
        self._turned_file = None if state is None else state / FLAGS
        self._turned: dict[str, float] = _turned(self._turned_file)
        self._stamp = _stamp(file)
        self._read = _policy(file) if file is not None else policy or RoutingPolicy()
        self.now = self._with_flags(self._read)

    def turn(self, flags: Mapping[str, object]) -> dict[str, float]:
        """Sets flags; None leaves one to the file again.

        Returns:
            All flags as they are now.

        Raises:
            UsageError: a flag that the policy has not, or a value that is none; nothing was changed.
        """
        turned = dict(self._turned)
        for name, value in flags.items():
            if name not in self._read.flags:
                raise unknown("flag", name, self._read.flags)
            if value is None:
                turned.pop(name, None)
            else:
                turned[name] = share(value)
        if self._turned_file is not None:
            write_atomic(self._turned_file, json.dumps(turned))
        self._turned = turned
        self.now = self._with_flags(self._read)
        log.info("flags turned: %s", dict(self.now.flags))
        return dict(self.now.flags)

    def reload(self) -> bool:
        """Reads the file again; a wrong one is logged and the old policy stays.

        Returns:
            Whether the policy in force was read now.
        """
        if self.file is None:
            return False
        self._stamp = _stamp(self.file)
        try:
            policy = _policy(self.file)
            for check in self.checks:
                check(policy)
        except LowbitError as error:
            self.failed += 1
            log.error("%s is not taken, the policy before stays: %s", self.file.name, error)
            return False
        self._read = policy
        self.now = self._with_flags(policy)
        log.info("%s was read", self.file.name)
        return True

    async def watch(self, every_s: float = POLL_S) -> None:
        """Reads the file again whenever it changed; never returns, whatever a file may do."""
        while True:
            await asyncio.sleep(every_s)
            try:
                if self.file is not None and _stamp(self.file) != self._stamp:
                    self.reload()
            except Exception:
                self.failed += 1
                log.exception("the policy's file is not taken, the policy before stays")

    def _with_flags(self, policy: RoutingPolicy) -> RoutingPolicy:
        return replace(policy, flags={name: self._turned.get(name, given) for name, given in policy.flags.items()})


def _policy(file: Path) -> RoutingPolicy:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The routing policy {file.name} cannot be read: {error}.") from error
    try:
        return RoutingPolicy.from_yaml(text)
    except UsageError as error:
        raise UsageError(f"{file.name}: {error.message}", error.hint) from error


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """Changes with the file; None where it is not there."""
    try:
        state = None if file is None else file.stat()
    except OSError:
        return None
    return None if state is None else (state.st_ino, state.st_mtime_ns, state.st_size)


def _turned(file: Path | None) -> dict[str, float]:
    if file is None or not file.is_file():
        return {}
    try:
        return {str(name): share(value) for name, value in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, UsageError) as error:
        log.error("%s is not taken: %s", file.name, error)
        return {}
