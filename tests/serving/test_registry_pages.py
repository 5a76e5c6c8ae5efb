"""What the registry's pages say where something is wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowbit.errors import ModelError, UsageError
from lowbit.registry.records import Conflict
from lowbit.registry.registry import Registry
from lowbit.rollout.store import Rollouts
from lowbit.serving.protocol.refusals import Conflicting, Malformed, Refusal, Unavailable
from lowbit.serving.web.pages import Asked
from lowbit.serving.web.registry_documents import Shown
from lowbit.serving.web.registry_pages import _in_thread


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (Conflict("It is elsewhere."), Conflicting),
        (UsageError("There is none."), Malformed),
        (ModelError("A file was changed."), Conflicting),
        (sqlite3.OperationalError("database is locked"), Unavailable),
        (OSError(28, "No space left on device", "/a/secret/path"), Unavailable),
    ],
)
def test_whatever_fails_is_a_refusal_of_its_kind(error: Exception, refusal: type[Refusal]) -> None:
    def work(_: Asked) -> dict[str, Any]:
        raise error

    with pytest.raises(refusal) as found:
        asyncio.run(_in_thread(work)(Asked({}, {}, b"")))
    assert type(found.value) is refusal
    assert "/a/secret" not in found.value.message


@pytest.mark.parametrize("limit", ["0", "1001", "000019999999", "-1", "x", "1e2", "\u0663", "", "1" * 5000])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(Malformed, match="from 1 to 1000"):
        Asked({}, {"limit": limit}, b"").limit()


def test_a_limit_holds(tmp_path: Path) -> None:
    assert (Asked({}, {}, b"").limit(), Asked({}, {}, b"").limit(200), Asked({}, {"limit": "0007"}, b"").limit()) == (50, 200, 7)
    with Registry.open(tmp_path / "registry", create=True) as registry:
        for number in range(5):
            registry.note("said", str(number), {}, "a test")
        shown = Shown(SimpleNamespace(registry=registry, rollouts=Rollouts(registry), models={}))  # type: ignore[arg-type]
        found = shown.audit(2)
        assert ([row["subject"] for row in found["rows"]], found["verified"]) == (["4", "3"], True)
        assert (shown.rollouts(1), shown.models()) == ([], [])
