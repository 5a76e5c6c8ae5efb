"""Any sequence of moves, promotions and rollbacks is told by the log alone."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from registry_case import BY, MODEL, filled

from lowbit.errors import UsageError
from lowbit.registry.aliases import ANY, back_to
from lowbit.registry.audit import append, broken_links, replay, row_digest
from lowbit.registry.records import AliasEvent, AuditRow
from lowbit.registry.registry import Registry

ALIASES = ("champion", "fallback", "challenger")
STEPS = some.lists(
    some.tuples(
        some.sampled_from(("promote", "rollback", "rollback to", "set", "swap", "remove", "note")),
        some.sampled_from(ALIASES),
        some.integers(1, 3),
        some.integers(1, 3),
    ),
    max_size=15,
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return filled(tmp_path_factory.mktemp("replay"))[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_sequence_of_moves_replays_from_the_log_to_the_same_aliases(registry: Registry, steps: list[tuple[str, str, int, int]]) -> None:
    digests = {version.number: version.digest for version in registry.versions(MODEL)}
    model = {(MODEL, alias): version.digest for alias, version in registry.aliases(MODEL).items()}
    for what, alias, number, other in steps:
        key = (MODEL, alias)
        try:
            if what == "promote":
                before = model.get(key)
                registry.promote(f"{MODEL}@{number}", alias=alias, by=BY, why=what)
                model[key] = digests[number]
                if alias == "champion" and before not in (None, digests[number]):
                    model[MODEL, "fallback"] = str(before)
            elif what == "rollback":
                event = registry.rollback(MODEL, alias=alias, by=BY, why=what)
                assert registry.rollback(MODEL, alias=alias, by=BY, why="twice") == event
                model[key] = str(event.after)
            elif what == "rollback to":
                registry.rollback(MODEL, alias=alias, to=digests[number], by=BY, why=what)
                model[key] = digests[number]
            elif what == "set":
                registry.move(MODEL, alias, digests[number], expect=ANY, by=BY, why=what)
                model[key] = digests[number]
            elif what == "swap":
                registry.move(MODEL, alias, digests[number], expect=digests[other], by=BY, why=what)
                assert model.get(key) in (digests[other], digests[number])
                model[key] = digests[number]
            elif what == "remove":
                registry.move(MODEL, alias, None, expect=ANY, by=BY, why=what)
                model.pop(key, None)
            else:
                registry.note("note", alias, {"number": number}, BY)
        except UsageError:
            pass  # it changed nothing: the check below holds it to that
    assert {(MODEL, alias): version.digest for alias, version in registry.aliases(MODEL).items()} == model
    assert replay(registry.audit()) == model
    assert registry.chain() == []


def test_the_whole_of_it_verifies(registry: Registry) -> None:
    assert registry.verify() == []


BODY = some.dictionaries(some.text(max_size=5), some.integers(), max_size=2)
ROWS = some.lists(some.tuples(some.sampled_from(("push", "note")), BODY), min_size=2, max_size=8)


def chained(parts: list[tuple[str, dict[str, int]]]) -> list[AuditRow]:
    rows: list[AuditRow] = []
    for id, (action, body) in enumerate(parts, 1):
        previous = rows[-1].sha256 if rows else "0" * 64
        rows.append(AuditRow(id, float(id), BY, action, "s", body, previous, row_digest(id, float(id), BY, action, "s", body, previous)))
    return rows


@settings(max_examples=100, deadline=None)
@given(ROWS, some.data())
def test_a_row_that_is_changed_taken_out_or_moved_breaks_the_chain(parts: list[tuple[str, dict[str, int]]], data: some.DataObject) -> None:
    from dataclasses import replace

    rows = chained(parts)
    assert list(broken_links(rows)) == []
    at = data.draw(some.integers(0, len(rows) - 1))
    how = data.draw(some.sampled_from(("by", "body", "action", "at", "out", "swap")))
    changed = list(rows)
    if how == "out":
        del changed[at]
        if at == len(rows) - 1:
            return  # the last row: the chain alone cannot tell, the counter and the head can
    elif how == "swap":
        other = data.draw(some.integers(0, len(rows) - 1).filter(lambda index: index != at))
        changed[at], changed[other] = changed[other], changed[at]
    else:
        new = {"by": "eve", "body": {**rows[at].body, "more": 1}, "action": "other", "at": rows[at].at + 1}
        changed[at] = replace(rows[at], **{how: new[how]})
    assert list(broken_links(changed)) != []


def event(id: int, before: str | None, after: str | None, kind: str = "set") -> AliasEvent:
    return AliasEvent(id, MODEL, "champion", before, after, 0.0, BY, "", kind)  # type: ignore[arg-type]


def test_where_a_rollback_leads() -> None:
    events = [event(1, None, "a"), event(2, "a", "b"), event(3, "b", None), event(4, None, "c"), event(5, "c", "d")]
    assert back_to(events, None) == "c"
    assert back_to(events, 2) == "b"
    assert back_to(events, "a") == "a"
    for to, said in ((3, "leads to no version"), (7, "has no event 7"), ("z", "never named")):
        with pytest.raises(UsageError, match=said):
            back_to(events, to)
    with pytest.raises(UsageError, match="no version before"):
        back_to(events[:1], None)


def test_append_continues_what_is_there(registry: Registry) -> None:
    last = registry.audit()[-1]
    with registry.transaction() as db:
        row = append(db, "hello", "s", {}, BY)
    assert (row.id, row.previous) == (last.id + 1, last.sha256)
