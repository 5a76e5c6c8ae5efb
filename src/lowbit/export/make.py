"""Make a target's folder: written beside its place, tried there, then moved into it. It is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lowbit.errors import UsageError
from lowbit.export.base import Artifact, Setting, Target
from lowbit.export.neutral import Neutral
from lowbit.export.placing import made_beside, move

MARK = "target.json"
"""What every folder of ours holds: what was written, and how far it was tried."""


def make(
    target: Target,
    source: Neutral,
    out: Path,
    settings: Mapping[str, Setting],
    then: Callable[[Artifact, Path], str],
    *,
    force: bool = False,
) -> None:
    """Writes an artifact into a new folder.

    Args:
        target: Whose.
        source: The quantized model.
        out: The folder; it must not exist, or with `force` be one that this function wrote.
        settings: A value for each of the target's wishes.
        then: Tries the artifact where it was made (in the folder that is its second argument) and says what `target.json` holds.
        force: Replace an earlier one.

    Raises:
        UsageError: the folder exists, or cannot be written; a setting that does not fit.
        ModelError: the model has what the target lacks.
        Interrupted: the disk is full; nothing was changed.
    """
    check_place(out, force=force)
    with made_beside(out) as folder:
        inner = folder / "target"
        inner.mkdir()
        text = then(target.write(source, inner, settings), inner)
        (inner / MARK).write_text(text, encoding="utf-8")
        move(inner, out, folder / "old")


def check_place(out: Path, *, force: bool) -> None:
    """Whether a folder may be written; cheap, so call it before the work.

    Raises:
        UsageError: it exists and may not be replaced.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.resolve() == Path.cwd():
        raise UsageError(f"{out} is the folder you are in, which cannot be replaced.", "Name a folder in it: --out NAME.")
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if not (out / MARK).is_file():
        raise UsageError(f"{out} exists and holds something else.", "Name another --out folder.")
    if not force:
        raise UsageError(f"{out} was exported before.", "Replace it with --force, or name another --out folder.")
