"""Who may write in an output folder, and that what appears there is whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lowbit.errors import UsageError
from lowbit.pipeline.store import Store, claimed, copy_whole, link_or_copy, request_key


def open_store(out: Path, key: str, *, force: bool = False) -> Store:
    """Claims a folder for a moment."""
    with claimed(out, key, force=force) as store:
        return store


def test_a_new_folder_is_claimed_and_found_again(tmp_path: Path) -> None:
    with claimed(tmp_path / "new" / "deep", "k") as store:
        store.journal.append("start", key="k")
    assert open_store(store.out, "k").journal.path == store.journal.path


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        open_store(tmp_path / "file", "k")
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        open_store(tmp_path / "file" / "out", "k")


def test_a_read_only_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o500)
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; tests/e2e has a read-only mount for it")
    with pytest.raises(UsageError, match="cannot be written"):
        open_store(out, "k")


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"not empty \(thesis\.tex\)"):
        open_store(tmp_path, "k")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_runs_bundle_is_kept_unless_forced(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out", "first")
    store.journal.append("start", key="first", source={"path": "a.onnx"})
    (store.out / "bundle.json").write_text("{}")
    with pytest.raises(UsageError, match=r"another run \(a\.onnx"):
        open_store(store.out, "second")
    assert (store.out / "bundle.json").exists()
    assert not (open_store(store.out, "second", force=True).out / "bundle.json").exists()


def test_one_run_at_a_time_also_with_force(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "k") as store:
        store.journal.append("start", key="k")
        with pytest.raises(UsageError, match="Another lowbit run"):
            open_store(store.out, "k", force=True)
        assert store.journal.path.exists()
    open_store(tmp_path / "out", "k")


def test_a_claim_without_a_journal_leaves_no_trace(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "k") as store:
        store.work.rmdir()
    assert not (tmp_path / "out").exists()


def test_keys_tell_requests_apart() -> None:
    assert request_key("a", "bc") != request_key("ab", "c")
    assert request_key("a", 1) == request_key("a", 1)


def test_a_link_replaces_what_was_there(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "sub" / "b"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    link_or_copy(source, target)
    assert target.read_text() == "new"
    assert target.samefile(source)


def test_a_copy_is_independent(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "sub" / "b"
    source.write_text("one")
    copy_whole(source, target)
    source.write_text("two")
    assert target.read_text() == "one"


def test_force_deletes_nothing_but_what_a_run_writes(tmp_path: Path) -> None:
    """Another's folder `model` stays where there is no journal of ours, and other files where there is one."""
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageError, match=r"not empty \(model\)"):
        open_store(tmp_path, "k", force=True)
    assert (tmp_path / "model").is_dir()
    (tmp_path / "model").rmdir()
    open_store(tmp_path, "k").journal.append("start", key="k")
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"not empty \(notes\.txt\)"):
        open_store(tmp_path, "other", force=True)
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_force_starts_the_same_run_anew(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out", "k")
    store.journal.append("start", key="k")
    assert list(open_store(store.out, "k", force=True).journal.events()) == []


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out", "k")
    store.journal.path.write_bytes(b"{not json}\n")
    with pytest.raises(UsageError, match="damaged"):
        open_store(store.out, "k")
