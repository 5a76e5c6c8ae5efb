"""Programs for the tests of generated C: together they have every kind; and one written to a folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lowbit.export.base import Artifact, Setting
from lowbit.export.cortexm.target import CortexM
from lowbit.export.program.program import Kind, Program
from lowbit.export.program.random_programs import random_program


@cache
def programs() -> tuple[Program, ...]:
    """Few random programs that have every kind between them."""
    drawn = [random_program(seed) for seed in range(80)]
    left, taken = set(Kind), []
    while left:
        best = max(drawn, key=lambda program: len(kinds_of(program) & left))
        assert kinds_of(best) & left, f"no program has {left}"
        taken.append(best)
        left -= kinds_of(best)
    return tuple(taken)


def kinds_of(program: Program) -> set[Kind]:
    return {operation.kind for operation in program.operations}


def written(program: Program, folder: Path, origin: str = "a test", **settings: Setting) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    target = CortexM()
    defaults = {wish.name: wish.default for wish in target.wishes}
    return target.write_program(program, folder, {**defaults, **settings}, origin)
