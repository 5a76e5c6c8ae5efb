"""A registry with real bundles, and real processes beside it: what the tests of the registry share."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_case import tiny_bundle

from lowbit.registry.records import Pushed
from lowbit.registry.registry import Registry

MODEL = "shirts"
BY = "ana"


@functools.cache
def bundle(note: str = "") -> Path:
    """A small real bundle, FP32 and INT8; another note is another version with the same source. Made once, not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="lowbit-registry-tests-"))
    _cleared(folder)
    folder.chmod(0o755)
    return tiny_bundle(folder / "cnn", note=note)


def _cleared(folder: Path) -> None:
    import atexit

    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


def copied(note: str, to: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(bundle(note), to))


def filled(folder: Path) -> tuple[Registry, Pushed, Pushed]:
    """A registry with versions 1 (source), 2 and 3 (INT8); 2 is the champion."""
    registry = Registry.open(folder, create=True)
    first, second = registry.push(bundle("first"), MODEL, by=BY), registry.push(bundle("second"), MODEL, by=BY)
    registry.promote(f"{MODEL}@1", by=BY, why="to begin with")
    registry.promote(f"{MODEL}@2", by=BY, why="faster")
    return registry, first, second


@contextmanager
def quick_folder() -> Iterator[Path]:
    """In memory where there is such a place: killing a process loses nothing that was written, on whatever disk."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        signal: That killed it; 0: none did.
        value: What its function returned.
        error: What it raised.
    """

    signal: int
    value: Any = None
    error: BaseException | None = None


def start(work: Callable[[], Any]) -> tuple[int, int]:
    """Begins a function in a process of its own; give the result to `wait`."""
    out, into = os.pipe()
    child = os.fork()
    if child:
        os.close(into)
        return child, out
    os.close(out)
    try:
        try:
            answer = (work(), None)
        except BaseException as error:
            error.__cause__ = error.__context__ = None
            answer = (None, error)
        with os.fdopen(into, "wb") as stream:
            try:
                content = pickle.dumps(answer)
            except Exception:
                content = pickle.dumps((None, RuntimeError("".join(traceback.format_exception(answer[1])))))
            stream.write(content)
    finally:
        sys.stdout.flush()
        os._exit(0)


def wait(started: tuple[int, int]) -> Ended:
    """Its end."""
    child, out = started
    with os.fdopen(out, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Ended(os.WTERMSIG(status))
    value, error = pickle.loads(content)
    return Ended(0, value, error)


def in_child(work: Callable[[], Any]) -> Ended:
    """Runs a function in a process of its own."""
    return wait(start(work))
