"""`kill -9` at every step of every change, and at moments drawn by a seed: the registry opens, verifies, and is as before or as after."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from registry_case import BY, MODEL, bundle, filled, in_child, quick_folder, start, wait

from lowbit.errors import UsageError
from lowbit.registry import blobs
from lowbit.registry.registry import Registry

RANDOM_RUNS = 250
"""With those at every step more than 500."""
LONGEST_S = 0.1
"""Of a wait for a kill, where the machine has so much other work that the operation took longer."""


@dataclass(frozen=True)
class Operation:
    """Something that changes a registry, and may be asked for again."""

    name: str
    empty: bool
    act: Callable[[Registry], object]


OPERATIONS = (
    Operation("first push", True, lambda registry: registry.push(bundle("first"), MODEL, by=BY)),
    Operation("push", False, lambda registry: registry.push(bundle("third"), MODEL, by=BY)),
    Operation("promote", False, lambda registry: registry.promote(f"{MODEL}@3", by=BY, why="better")),
    Operation("rollback", False, lambda registry: registry.rollback(MODEL, by=BY, why="worse")),
    Operation("gc", False, lambda registry: registry.gc(keep=1, by=BY)),
    Operation("checkout", False, lambda registry: registry.checkout(registry.resolve(f"{MODEL}@3"))),
)


def run(folder: Path, operation: Operation) -> None:
    with Registry.open(folder, create=True) as registry:
        operation.act(registry)


@dataclass(frozen=True)
class State:
    """What others can see of a registry."""

    versions: tuple[tuple[int, str], ...]
    aliases: tuple[tuple[str, int], ...]
    log: tuple[str, ...]


def state_of(folder: Path) -> State:
    """After a check that nothing is wrong; nothing at all where there is no registry yet."""
    if not (folder / "registry.sqlite").exists():
        with pytest.raises(UsageError):
            Registry.open(folder)
        return State((), (), ())
    with Registry.open(folder) as registry:
        assert registry.verify() == []
        versions = tuple((version.number, version.digest) for version in registry.versions(MODEL))
        aliases = tuple((alias, version.number) for alias, version in registry.aliases(MODEL).items())
        return State(versions, aliases, tuple(f"{row.action} {row.subject}" for row in registry.audit()))


class Counted(sqlite3.Connection):
    """A connection whose every statement is a step."""

    steps: Steps

    def execute(self, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
        self.steps.reached()
        return super().execute(*args)


class Steps:
    """Counts the moments between effects, in a process that is about to die; at the chosen one it does."""

    def __init__(self, last: int) -> None:
        self.count, self.last = 0, last

    def reached(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **options: Any) -> Any:
            self.reached()
            return effect(*args, **options)

        return stepped

    def watch(self) -> None:
        """Every effect on files and on the database from here on. Only ever called in a forked process."""
        for owner, names in ((os, ("open", "fsync", "fchmod")), (Path, ("mkdir", "replace", "rename", "unlink", "chmod", "hardlink_to"))):
            for name in names:
                setattr(owner, name, self.around(getattr(owner, name)))
        shutil.rmtree = self.around(shutil.rmtree)
        chunks = blobs.Blobs.chunks

        def torn(store: blobs.Blobs, sha256: str) -> Any:
            for chunk in chunks(store, sha256):
                self.reached()
                half = len(chunk) // 2
                yield chunk[:half]
                self.reached()
                yield chunk[half:]

        blobs.Blobs.chunks = torn  # type: ignore[method-assign]
        Counted.steps = self
        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **options: connect(*args, **options, factory=Counted)  # type: ignore[assignment]


def killed_at(folder: Path, operation: Operation, step: int) -> int:
    """The signal that ended it; 0 where it has fewer steps."""

    def work() -> None:
        steps = Steps(step)
        steps.watch()
        run(folder, operation)
        steps.reached()

    ended = in_child(work)
    assert ended.error is None, ended.error
    return ended.signal


class Around:
    """The state before and after an operation, and a folder as before to try it in."""

    def __init__(self, operation: Operation, folder: Path) -> None:
        self.operation, self.before, self.folder = operation, folder / "before", folder / "try"
        if not operation.empty:
            filled(self.before)[0].close()
        self.old = state_of(self.before)
        self.fresh()
        begin = time.perf_counter()
        run(self.folder, operation)
        self.takes_s = time.perf_counter() - begin
        self.new = state_of(self.folder)

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.before.exists():
            shutil.copytree(self.before, self.folder)

    def check(self) -> None:
        """As before or as after, whole; and the same call again ends as if nothing had happened."""
        assert state_of(self.folder) in (self.old, self.new)
        run(self.folder, self.operation)
        assert state_of(self.folder) == self.new
        with Registry.open(self.folder) as registry:
            registry.gc(keep=100, by=BY)
            held = {name for v in registry.versions(MODEL) for name in (v.digest, *(file.sha256 for file in registry.files(v)))}
            assert {file.name for file in (self.folder / "blobs").glob("??/*")} == held
        assert list((self.folder / "incoming").glob("*")) == []
        assert {folder.name for folder in (self.folder / "checkouts").iterdir()} <= {digest for _, digest in self.new.versions}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_killed_at_every_step(operation: Operation) -> None:
    bundle("first"), bundle("third")
    with quick_folder() as folder:
        around = Around(operation, folder)
        step, states = 0, set()
        while True:
            step += 1
            around.fresh()
            if not killed_at(around.folder, operation, step):
                break
            states.add(state_of(around.folder))
            around.check()
    assert step > 12, "the steps were not seen"
    assert states <= {around.old, around.new}
    if operation.name != "checkout":
        assert states == {around.old, around.new}, "the change itself was never between two kills"
    print(f"{operation.name}: killed at {step - 1} steps")


@pytest.mark.slow
def test_killed_at_any_moment() -> None:
    """By another process, so that it also happens within a write of SQLite's."""
    killed = 0
    with quick_folder() as folder:
        arounds = [Around(operation, folder / str(index)) for index, operation in enumerate(OPERATIONS)]
        for seed in range(RANDOM_RUNS):
            draw = random.Random(seed)
            around = draw.choice(arounds)
            around.fresh()
            process = start(lambda around=around: run(around.folder, around.operation))
            time.sleep(draw.uniform(0, 1.3) * min(around.takes_s, LONGEST_S))
            os.kill(process[0], signal.SIGKILL)
            killed += wait(process).signal == signal.SIGKILL
            around.check()
    print(f"{killed} of {RANDOM_RUNS} were killed before they had ended")
    assert killed > RANDOM_RUNS / 4


def test_a_kill_would_be_noticed_where_the_change_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: a promotion that commits twice shows a state between."""
    from lowbit.registry import aliases, registry

    def torn(db: sqlite3.Connection, version: Any, *, by: str, why: str, **_: object) -> None:
        aliases.move(db, MODEL, "fallback", version.digest, expect=aliases.ANY, by=by, why=why, kind="set")
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        aliases.move(db, MODEL, "champion", version.digest, expect=aliases.ANY, by=by, why=why, kind="promote")

    monkeypatch.setattr(registry.aliases, "promote", torn)
    with quick_folder() as folder:
        around = Around(next(o for o in OPERATIONS if o.name == "promote"), folder)
        states, step = set(), 0
        while True:
            step += 1
            around.fresh()
            if not killed_at(around.folder, around.operation, step):
                break
            states.add(state_of(around.folder))
    assert len(states) == 3
