"""A target's folder is there whole or not at all, and nothing of anybody else's is replaced."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from lowbit.errors import Interrupted, ModelError, UsageError
from lowbit.export.base import Artifact, Setting, Target
from lowbit.export.make import MARK, check_place, make
from lowbit.export.neutral import Neutral

NOTHING = cast(Neutral, None)


class Toy:
    """Writes one file, or fails."""

    def __init__(self, error: Exception | None = None, text: str = "weights") -> None:
        self.error, self.text = error, text

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:  # noqa: ARG002
        (folder / "model.bin").write_text(self.text)
        if self.error is not None:
            raise self.error
        return Artifact(folder / "model.bin", (folder / "model.bin",))


def made(out: Path, toy: Toy, *, force: bool = False, told: str = "{}") -> None:
    make(cast(Target, toy), NOTHING, out, {}, lambda *_: told, force=force)


def test_artifact_and_evidence_arrive_together(tmp_path: Path) -> None:
    made(tmp_path / "out", Toy(), told='{"a": 1}')
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.bin", MARK]
    assert (tmp_path / "out" / MARK).read_text() == '{"a": 1}'
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelError("no such operator"), ModelError),
        (OSError(errno.ENOSPC, "full"), Interrupted),
        (OSError(errno.EACCES, "denied"), UsageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_leaves_nothing(tmp_path: Path, error: Any, told: type[BaseException]) -> None:
    with pytest.raises(told):
        made(tmp_path / "out", Toy(error))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_earlier_export_alone(tmp_path: Path) -> None:
    made(tmp_path / "out", Toy(text="before"))
    with pytest.raises(ModelError):
        made(tmp_path / "out", Toy(ModelError("no"), text="after"), force=True)
    assert (tmp_path / "out" / "model.bin").read_text() == "before"
    made(tmp_path / "out", Toy(text="after"), force=True)
    assert (tmp_path / "out" / "model.bin").read_text() == "after"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_only_our_own_folders_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            made(tmp_path / "theirs", Toy(), force=force)
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    made(tmp_path / "empty", Toy())
    with pytest.raises(UsageError, match="--force"):
        check_place(tmp_path / "empty", force=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="something else"):
        check_place(tmp_path / "file", force=True)
