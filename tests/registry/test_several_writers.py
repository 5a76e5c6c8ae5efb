"""Real processes at once, full disks and folders that cannot be written: nothing corrupt, nothing half there."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registry_case import BY, MODEL, bundle, filled, in_child, start, wait

from lowbit.errors import Interrupted, UsageError
from lowbit.registry.records import Conflict
from lowbit.registry.registry import Registry

WRITERS = 4


def at_once(works: list[Callable[[], object]]) -> list[object]:
    """Runs functions in processes of their own that begin together; returns what they returned or raised."""
    ready, go = os.pipe(), os.pipe()

    def gated(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            os.close(go[1])
            os.write(ready[1], b".")
            os.read(go[0], 1)
            return work()

        return run

    started = [start(gated(work)) for work in works]
    for _ in works:
        os.read(ready[0], 1)
    for end in (*ready, *go):
        os.close(end)
    ended = [wait(process) for process in started]
    assert [end.signal for end in ended] == [0] * len(works)
    return [end.error or end.value for end in ended]


def test_of_writers_that_expect_the_same_one_wins_and_the_others_are_told_who(tmp_path: Path) -> None:
    registry = filled(tmp_path)[0]
    expected = registry.resolve(MODEL).digest
    digests = [registry.push(bundle(f"writer {index}"), MODEL, by=BY).version.digest for index in range(WRITERS)]
    registry.close()

    def swap(index: int) -> object:
        with Registry.open(tmp_path) as mine:
            return mine.move(MODEL, "champion", digests[index], expect=expected, by=f"writer {index}", why="mine")

    found = at_once([lambda index=index: swap(index) for index in range(WRITERS)])
    lost = [answer for answer in found if isinstance(answer, Conflict)]
    (winner,) = [index for index, answer in enumerate(found) if not isinstance(answer, Conflict)]
    assert len(lost) == WRITERS - 1
    assert all(f"moved by writer {winner} at" in conflict.message for conflict in lost)
    with Registry.open(tmp_path) as registry:
        assert registry.resolve(MODEL).digest == digests[winner]
        assert registry.verify() == []


def test_processes_that_push_promote_and_collect_at_once_leave_a_whole_registry(tmp_path: Path) -> None:
    """Also the first opening, which makes the file."""
    for index in range(WRITERS):
        bundle(f"writer {index}")

    def work(index: int) -> list[int]:
        with Registry.open(tmp_path / "registry", create=True) as registry:
            pushed = registry.push(bundle(f"writer {index}"), MODEL, by=f"writer {index}")
            registry.promote(pushed.version, by=f"writer {index}", why="mine")
            registry.gc(keep=100, by=f"writer {index}")
            registry.checkout(pushed.source)
            return [version.number for version in pushed.new]

    found = at_once([lambda index=index: work(index) for index in range(WRITERS)])
    numbers = [number for answer in found for number in answer]  # type: ignore[attr-defined]
    assert sorted(numbers) == list(range(1, WRITERS + 2)), "one source, found by the others, and one version each"
    with Registry.open(tmp_path / "registry") as registry:
        assert registry.verify() == []
        assert len(registry.history(MODEL, "champion")) == WRITERS
        assert list((tmp_path / "registry" / "incoming").iterdir()) == []


def test_threads_of_one_process_share_a_registry(tmp_path: Path) -> None:
    import threading

    registry, failed = filled(tmp_path)[0], []

    def work(index: int) -> None:
        try:
            for number in range(10):
                registry.note("thread", f"{index}", {"number": number}, BY)
                with registry.transaction():
                    registry.promote(f"{MODEL}@{2 + (index + number) % 2}", by=BY, why="turn")
                    assert registry.resolve(MODEL).number == 2 + (index + number) % 2
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert registry.verify() == []
    assert len([row for row in registry.audit() if row.action == "thread"]) == 10 * WRITERS


# ── no space ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("most", [0, 100, 1_000, 5_000, 10_000, 20_000, 33_000, 40_000, 60_000, 80_000])
@pytest.mark.parametrize("empty", [True, False])
def test_a_push_without_space_leaves_nothing_half(tmp_path: Path, most: int, empty: bool) -> None:
    """No file may grow over a limit, as on a full disk a write comes back short or fails."""
    folder = tmp_path / "registry"
    if not empty:
        filled(folder)[0].close()
    bundle("third")

    def push() -> list[int]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with Registry.open(folder, create=True) as registry:
            return [version.number for version in registry.push(bundle("third"), MODEL, by=BY).new]

    ended = in_child(push)
    assert ended.signal == 0
    if ended.error is not None:
        assert isinstance(ended.error, Interrupted | UsageError), ended.error
        assert isinstance(ended.error, Interrupted) or "cannot be opened" in ended.error.message
    with Registry.open(folder, create=True) as registry:
        assert registry.verify() == []
        before = [] if empty else [1, 2, 3]
        assert [version.number for version in registry.versions(MODEL)] == before + (ended.value or [])
        assert [version.number for version in registry.push(bundle("third"), MODEL, by=BY).new or registry.versions(MODEL)]
        assert registry.verify() == []


def test_a_full_disk_is_told_and_undone(tmp_path: Path) -> None:
    """A real one, where the system lets us make one: 1 MB in memory, nearly full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    registry_at = disk / "registry"

    def work() -> object:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
            return "no right to mount"
        if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, b"size=1m"):
            return "no right to mount"
        registry = filled(registry_at)[0]
        with (disk / "filler").open("wb") as stream:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            stream.write(b"x" * (free - 12_000))
        said = []
        for change in (
            lambda: registry.push(bundle("third"), MODEL, by=BY),
            lambda: [registry.promote(f"{MODEL}@{2 + number % 2}", by=BY, why="x" * 1500) for number in range(20)],
            lambda: registry.checkout(registry.resolve(f"{MODEL}@3")),
        ):
            with pytest.raises(Interrupted) as error:
                change()
            said.append(error.value.message)
            assert registry.verify() == []
        (disk / "filler").unlink()
        with Registry.open(registry_at) as registry:
            assert registry.verify() == []
            assert [version.number for version in registry.versions(MODEL)] == [1, 2, 3]
            assert [version.number for version in registry.push(bundle("third"), MODEL, by=BY).new] == [4]
            assert list((registry_at / "incoming").iterdir()) == []
        return said

    bundle("third")
    ended = in_child(work)
    assert ended.error is None, ended.error
    if ended.value == "no right to mount":
        pytest.skip("no right to mount a file system")
    assert all("disk is full" in text or "Nothing was changed" in text for text in ended.value), ended.value


# ── no right to write ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that any user may look into; pytest's own are the user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(work: Callable[[], object]) -> Callable[[], object]:
    """Root may write anywhere: it becomes somebody who may not."""

    def run() -> object:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return work()

    return run


@pytest.mark.parametrize("locked", [True, False])
def test_a_read_only_registry_can_be_read_and_says_that_it_cannot_be_written(open_folder: Path, locked: bool) -> None:
    folder = open_folder / "registry"
    registry = filled(folder)[0]
    expected = registry.checkout(registry.resolve(MODEL))
    registry.close()
    if not locked:
        (folder / "lock").unlink()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def work() -> tuple[object, ...]:
        with Registry.open(folder) as registry:
            said = []
            for change in (
                lambda: registry.promote(f"{MODEL}@3", by=BY, why=""),
                lambda: registry.push(bundle("first"), MODEL, by=BY),
                lambda: registry.push(bundle("third"), MODEL, by=BY),
                lambda: registry.checkout(registry.resolve(f"{MODEL}@3")),
                lambda: registry.gc(keep=1, by=BY),
            ):
                with pytest.raises(UsageError) as error:
                    change()
                said.append(error.value.message)
            champion = registry.resolve(MODEL)
            return champion.number, registry.checkout(champion), registry.verify(), registry.changes() >= 0, said

    bundle("third")
    ended = in_child(as_nobody(work))
    assert ended.error is None, ended.error
    number, checkout, problems, _, said = ended.value
    assert (number, checkout, problems) == (2, expected, [])
    assert all("read-only" in text or "Permission denied" in text for text in said), said


def test_a_registry_cannot_be_made_where_nobody_may_write(open_folder: Path) -> None:
    open_folder.chmod(0o555)

    def work() -> None:
        Registry.open(open_folder / "registry", create=True)

    ended = in_child(as_nobody(work))
    assert isinstance(ended.error, UsageError)
    assert "No registry can be made at" in ended.error.message


def test_a_reader_follows_a_writer_that_was_killed(tmp_path: Path) -> None:
    """The log of the database is left behind; the next one to open it takes it up."""
    filled(tmp_path)[0].close()

    def work() -> None:
        registry = Registry.open(tmp_path)
        registry.promote(f"{MODEL}@3", by=BY, why="the last act")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work).signal == signal.SIGKILL
    with Registry.open(tmp_path) as registry:
        assert registry.resolve(MODEL).number == 3
        assert registry.verify() == []
