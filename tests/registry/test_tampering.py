"""Whatever was changed behind the registry's back is found by `verify`, and is not given out."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_case import BY, MODEL, bundle, filled

from lowbit.errors import ModelError, UsageError
from lowbit.registry.audit import FIRST, canonical, row_digest
from lowbit.registry.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return filled(tmp_path / "registry")[0]


def kinds(registry: Registry, **options: object) -> set[str]:
    return {problem.kind for problem in registry.verify(**options)}  # type: ignore[arg-type]


def edit(registry: Registry, *statements: str) -> None:
    """As somebody with the file and a database tool would: without the triggers that keep honest people honest."""
    db = sqlite3.connect(registry.folder / "registry.sqlite")
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        assert db.execute(statement).rowcount != 0, statement
    db.commit()
    db.close()


def blob(registry: Registry, path: str, ref: str = f"{MODEL}@2") -> Path:
    digests = {file.path: file.sha256 for file in registry.files(registry.resolve(ref))}
    return registry.folder / "blobs" / digests[path][:2] / digests[path]


def flip(file: Path, at: int = -1) -> None:
    """One bit; same size, same time."""
    state, content = file.stat(), bytearray(file.read_bytes())
    content[at] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def shorten(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-10])


def link(file: Path) -> None:
    file.rename(file.with_suffix(".aside"))
    file.symlink_to(file.with_suffix(".aside"))


@pytest.mark.parametrize("spoil", [flip, shorten, Path.unlink, link])
@pytest.mark.parametrize("path", ["model/model.onnx", "bundle.json", "preprocess.yaml"])
def test_a_changed_file_is_found_and_refused(registry: Registry, path: str, spoil: Callable[[Path], None]) -> None:
    assert registry.verify() == []
    spoil(blob(registry, path))
    problems = registry.verify()
    assert {problem.kind for problem in problems} == {"blob"}
    assert any(f"{path} of {MODEL}@2" in problem.text for problem in problems)
    version = registry.resolve(f"{MODEL}@2")
    with pytest.raises(ModelError):
        registry.checkout(version)
    assert list((registry.folder / "checkouts").iterdir()) == []


def test_a_file_changed_after_its_checkout_is_refused_where_the_checkout_is_gone_too(registry: Registry) -> None:
    version = registry.resolve(f"{MODEL}@2")
    folder = registry.checkout(version)
    flip(blob(registry, "model/model.onnx"))
    assert kinds(registry) == {"blob"}
    assert registry.checkout(version) == folder, "what is checked out is whole"
    flip(folder / "model" / "model.onnx")
    with pytest.raises(ModelError, match="changed after it was registered"):
        registry.checkout(version)


def test_pushing_the_bundle_again_repairs_a_file(registry: Registry) -> None:
    flip(blob(registry, "model/model.onnx"))
    assert registry.push(bundle("first"), MODEL, by=BY).new == ()
    assert registry.verify() == []


@pytest.mark.parametrize("spoil", [flip, shorten, Path.unlink])
def test_a_changed_listing_is_found_and_refused(registry: Registry, spoil: Callable[[Path], None]) -> None:
    version = registry.resolve(f"{MODEL}@3")
    spoil(registry.folder / "blobs" / version.digest[:2] / version.digest)
    assert kinds(registry) == {"listing"}
    with pytest.raises(ModelError):
        registry.checkout(version)
    with pytest.raises(ModelError):
        registry.gc(keep=1, by=BY)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE versions SET lineage = json_set(lineage, '$.calibration.n', 512) WHERE number = 2", {"version", "manifest"}),
        ("UPDATE versions SET precision = 'fp32' WHERE number = 2", {"version", "manifest"}),
        ("UPDATE versions SET by = 'eve' WHERE number = 2", {"version"}),
        ("UPDATE versions SET created = created - 86400 WHERE number = 2", {"version"}),
        ("UPDATE versions SET parents = '[]' WHERE number = 2", {"version"}),
        ("UPDATE versions SET lineage = 'no json' WHERE number = 3 AND collected IS NULL", {"version"}),
        ("DELETE FROM versions WHERE number = 3", {"version"}),
        ("UPDATE versions SET collected = 1 WHERE number = 3", {"version"}),
        (
            "UPDATE aliases SET digest = (SELECT digest FROM versions WHERE number = 3) WHERE alias = 'champion'",
            {"alias"},
        ),
        ("DELETE FROM aliases WHERE alias = 'fallback'", {"alias"}),
        ("INSERT INTO aliases SELECT model, 'challenger', digest, event FROM aliases WHERE alias = 'champion'", {"alias"}),
        ("UPDATE aliases SET digest = 'ab' WHERE alias = 'champion'", {"alias"}),
        ("UPDATE alias_events SET by = 'eve' WHERE id = 2", {"alias"}),
        ("UPDATE alias_events SET why = 'a better reason' WHERE id = 2", {"alias"}),
        ("UPDATE alias_events SET at = at + 1 WHERE id = 2", {"alias"}),
        ("DELETE FROM alias_events WHERE id = 1", {"alias"}),
        ("UPDATE audit SET by = 'eve' WHERE id = 2", {"audit"}),
        ("UPDATE audit SET at = at + 1 WHERE id = 1", {"audit"}),
        ("UPDATE audit SET subject = 'shirts@9' WHERE id = 2", {"audit", "version"}),
        ("UPDATE audit SET body = json_set(body, '$.why', 'another') WHERE action = 'promote'", {"audit", "alias"}),
        ("UPDATE audit SET body = 'no json' WHERE id = 2", {"audit", "version"}),
        ("UPDATE audit SET sha256 = previous WHERE id = 2", {"audit"}),
        ("DELETE FROM audit WHERE id = 2", {"audit", "version"}),
        ("DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)", {"audit", "alias"}),
    ],
)
def test_a_changed_row_is_found(registry: Registry, statement: str, found: set[str]) -> None:
    edit(registry, statement)
    assert found <= kinds(registry)
    assert "blob" not in kinds(registry)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE versions SET by = x'00ff' WHERE number = 3", {"version"}),
        ("UPDATE versions SET created = 9e999 WHERE number = 3", {"version"}),
        ("UPDATE versions SET digest = '../../../etc' WHERE number = 3", {"version"}),
        ("UPDATE versions SET lineage = '{\"score\": 1e999}' WHERE number = 3", {"version"}),
        (f"UPDATE versions SET parents = '{'[' * 3000}' WHERE number = 3", {"version"}),
        ("UPDATE aliases SET alias = x'00ff' WHERE alias = 'fallback'", {"alias"}),
        ("UPDATE audit SET at = 9e999 WHERE id = 5", {"audit"}),
        ("UPDATE audit SET by = x'00ff' WHERE id = 5", {"audit"}),
        ("UPDATE audit SET body = '{}' WHERE id = 5", {"audit", "alias"}),
        ("UPDATE audit SET body = json_set(body, '$.alias', json('[1]'), '$.event', json('{}')) WHERE id = 5", {"audit", "alias"}),
        ("UPDATE audit SET body = '{\"why\": NaN}' WHERE id = 2", {"audit"}),
        (f"UPDATE audit SET body = '{'[' * 3000}' WHERE id = 2", {"audit"}),
    ],
)
def test_what_nobody_could_have_written_is_found_and_no_bug(registry: Registry, statement: str, found: set[str]) -> None:
    edit(registry, statement)
    assert found <= kinds(registry)


def test_an_alias_of_nothing_gives_out_nothing_else(registry: Registry) -> None:
    edit(registry, "UPDATE aliases SET digest = 'ab' WHERE alias = 'champion'")
    for ref in (MODEL, f"{MODEL}@champion"):
        with pytest.raises(ModelError, match="names a version that is not there"):
            registry.resolve(ref)


@pytest.mark.parametrize("head", ["", "0", "abc", "3f9a61", "no digest", "x" * 64])
def test_a_head_that_would_tell_nothing_is_refused(registry: Registry, head: str) -> None:
    with pytest.raises(UsageError, match="no head of the log"):
        registry.verify(head=head)


def test_the_head_of_an_empty_log_is_in_every_log(tmp_path: Path, registry: Registry) -> None:
    with Registry.open(tmp_path / "empty", create=True) as empty:
        assert registry.verify(head=empty.head()) == []


def test_the_rows_that_are_never_changed_say_so(registry: Registry) -> None:
    for statement in ("UPDATE audit SET by = 'x'", "DELETE FROM audit", "DELETE FROM alias_events", "DELETE FROM versions"):
        with pytest.raises(ModelError, match=r"append-only|never used twice"), registry.transaction() as db:
            db.execute(statement)


def test_an_alias_that_was_turned_does_not_get_a_file_past_its_digest(registry: Registry) -> None:
    """Turning an alias to another registered version is found by verify; the version itself is still whole."""
    three = registry.resolve(f"{MODEL}@3")
    edit(registry, f"UPDATE aliases SET digest = '{three.digest}' WHERE alias = 'champion'")
    assert [problem.text for problem in registry.verify()] == [f"{MODEL}@champion does not name what the log says."]


def rewrite_last_promotion(registry: Registry) -> None:
    """The best that somebody with the file can do: take back the last change together with every trace of it."""
    last = registry.history(MODEL)[-2:]  # champion and fallback
    edit(
        registry,
        f"DELETE FROM alias_events WHERE id IN ({last[0].id}, {last[1].id})",
        "DELETE FROM audit WHERE id > (SELECT max(id) - 2 FROM audit)",
        "DELETE FROM aliases WHERE alias = 'fallback'",
        f"UPDATE aliases SET digest = '{last[0].before}' WHERE alias = 'champion'",
    )


def test_the_last_rows_taken_away_with_all_their_traces_are_found_by_the_counter_or_by_the_head(registry: Registry) -> None:
    head = registry.head()
    rewrite_last_promotion(registry)
    assert [problem.text for problem in registry.verify()] == ["The last rows of the log are gone: there were 6."]
    edit(registry, "UPDATE sqlite_sequence SET seq = seq - 2 WHERE name IN ('audit', 'alias_events')")
    assert registry.verify() == [], "nothing in the folder tells of it any more"
    assert [problem.kind for problem in registry.verify(head=head)] == ["audit"]
    assert [problem.kind for problem in registry.chain(head[:16])] == ["audit"]
    assert registry.verify(head=registry.head()) == []


def test_a_log_that_was_written_anew_is_found_by_the_head_alone(registry: Registry) -> None:
    rows, head, previous = registry.audit(), registry.head(), FIRST
    statements = []
    for row in rows:
        sha256 = row_digest(row.id, row.at, "eve" if row.id == 1 else row.by, row.action, row.subject, row.body, previous)
        by = "eve" if row.id == 1 else row.by
        statements.append(f"UPDATE audit SET by = '{by}', previous = '{previous}', sha256 = '{sha256}' WHERE id = {row.id}")
        previous = sha256
    edit(registry, *statements)
    assert registry.verify() == []
    assert [problem.kind for problem in registry.verify(head=head)] == ["audit"]


def test_an_older_head_is_still_in_the_log(registry: Registry) -> None:
    head = registry.head()
    registry.promote(f"{MODEL}@3", by=BY, why="better")
    assert registry.verify(head=head) == []
    assert registry.verify(head=head[:12]) == []


def test_a_damaged_database_is_found_or_told(registry: Registry) -> None:
    for number in range(200):
        registry.note("filler", f"row {number}", {"text": "x" * 200}, BY)
    registry.close()
    file = registry.folder / "registry.sqlite"
    for page in range(1, file.stat().st_size // 4096):
        content = bytearray(file.read_bytes())
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
        other = registry.folder.parent / "damaged"
        other.mkdir(exist_ok=True)
        (other / "registry.sqlite").write_bytes(content)
        for extra in ("-wal", "-shm"):
            (other / f"registry.sqlite{extra}").unlink(missing_ok=True)
        try:
            with Registry.open(other) as damaged:
                assert {problem.kind for problem in damaged.verify()} & {"database", "audit", "version", "alias"}
        except ModelError as error:
            assert "is damaged" in error.message or "could not do that" in error.message  # noqa: PT017


def test_verify_of_one_version_reads_that_and_its_parents(registry: Registry) -> None:
    flip(blob(registry, "bundle.json", f"{MODEL}@3"))
    assert registry.verify(f"{MODEL}@2") == []
    flip(blob(registry, "bundle.json", f"{MODEL}@1"))
    assert {problem.subject for problem in registry.verify(f"{MODEL}@2")} == {f"{MODEL}@1"}


def test_canonical_text_is_one_for_equal_values() -> None:
    assert canonical({"b": 1, "a": [1.5, None, "ä"]}) == '{"a":[1.5,null,"ä"],"b":1}'
    with pytest.raises(ValueError):
        canonical({"x": float("nan")})


def test_a_reason_that_is_too_long_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="up to 2,000 are kept"):
        registry.promote(f"{MODEL}@3", by=BY, why="x" * 2001)
