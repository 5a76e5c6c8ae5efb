"""What every target promises: say what this machine can do for it, write its artifact, open it where it can be run. One folder a target.

The suite in tests/conformance/test_targets.py is the other half of this contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Program
from lowbit.types import Array, Feeds

Level = Literal["run", "emulated", "interpreted", "checked"]
"""How far an artifact can be tried: on the target's own runtime; on an emulator of it; by our own interpreter; by rules alone."""

Setting = str | int | float | bool


@dataclass(frozen=True)
class Abilities:
    """What this machine can do for a target.

    Attributes:
        write: Whether an artifact can be written.
        level: How far it can then be tried.
        missing: What to install to write it, or to try it further, e.g. "pip install 'lowbit[litert]'"; empty where nothing is.
        words: One short sentence that says what a result here means, e.g. "meets documented conditions; not compiled".
    """

    write: bool
    level: Level
    missing: tuple[str, ...] = ()
    words: str = ""


@dataclass(frozen=True)
class Wish:
    """A setting of a target, for the command line and the documentation.

    Attributes:
        name: As in `--set name=value`.
        default: Its value; its type is the setting's.
        words: What it does.
        allowed: Its values where they are few.
    """

    name: str
    default: Setting
    words: str
    allowed: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """What was written for a target.

    Attributes:
        main: The file, or for some targets the folder, that is given to the target.
        files: All files, that one first.
        facts: Numbers and words that belong to it, e.g. {"arena_bytes": 49152}.
        notes: What people should know: approximations, limits, what to do next.
        state: What the same target's `open` and `check` need besides the files; not kept on disk.
        program: The integer program that it has to compute exactly, where it is of one: what its answers are compared with.
        words: What a result means, where it is something else than the target's abilities say; "" where it is not.
    """

    main: Path
    files: tuple[Path, ...]
    facts: Mapping[str, Setting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    state: object | None = None
    program: Program | None = None
    words: str = ""

    @property
    def size_bytes(self) -> int:
        """Of the main file, or of everything in the main folder."""
        if self.main.is_file():
            return self.main.stat().st_size
        return sum(file.stat().st_size for file in self.main.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Finding:
    """What a rule says of an artifact.

    Attributes:
        rule: Short name, e.g. "zero points are 0".
        severity: "error": the target refuses it or is wrong; "warning": it falls back or is slower; "note": good to know.
        text: What was found, where, and what to do.
    """

    rule: str
    severity: Literal["error", "warning", "note"]
    text: str


@runtime_checkable
class TargetSession(Protocol):
    """An artifact that can be asked. It is fed and answers like the model it came from: float arrays in the source's names and layout."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers samples.

        Args:
            feeds: Source input name -> array [N, ...] in the source's layout and dtype; N is free, whatever the artifact's own batch.

        Raises:
            RunError: it failed.
        """
        ...

    def integers(self, feeds: Feeds) -> dict[str, Array] | None:
        """The same answers as levels of the outputs' grids; None where the artifact gives floating point alone."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


@runtime_checkable
class Target(Protocol):
    """A place where models run.

    Attributes:
        name: "litert", "cortex-m", "qnn", ...; letters, digits, "-".
        title: For people: "LiteRT", "Qualcomm QNN".
        wishes: Its settings.
        extra: Of lowbit's packages: `pip install 'lowbit[EXTRA]'`; None where nothing is needed.
    """

    name: str
    title: str
    wishes: tuple[Wish, ...]
    extra: str | None

    def version(self) -> str | None:
        """Of what writes or runs it, with its name where that is not the target's; None where nothing can be written for want of it.

        Imports nothing heavy.
        """
        ...

    def abilities(self) -> Abilities:
        """What this machine can do for it."""
        ...

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes the artifact.

        Args:
            source: A quantized model.
            folder: Empty; everything goes here. What stands there after an error is thrown away by the caller.
            settings: A value for each wish.

        Raises:
            ModelError: the model has what the target lacks: operator, node and the part that would fall back are named, and what to do.
            UsageError: a setting that does not fit, a missing package.
        """
        ...

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """What the target's documented rules say of what was written."""
        ...

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:
        """Names of the ways in which the artifact can be run here, the one that users get first; empty where it cannot."""
        ...

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Loads an artifact.

        Args:
            artifact: That `write` gave.
            kernels: One of `kernel_sets`.

        Raises:
            RunError: it does not load.
        """
        ...


@runtime_checkable
class Timed(Protocol):
    """A target whose artifacts can be timed here as they would run there: on one of lowbit's runtimes."""

    def timed(self, artifact: Artifact) -> Mapping[str, tuple[str, Path]]:
        """Kernel set -> name of the runtime (`lowbit.runtimes.registry`), and the file it opens."""
        ...


@runtime_checkable
class Referenced(Protocol):
    """A target whose artifacts have grids of their own, and no integer program: what was written is its own reference."""

    def reference(self, artifact: Artifact) -> TargetSession:
        """The artifact step by step, without any kernel that is meant to be fast; `write` gave it.

        Raises:
            RunError: it does not load.
        """
        ...


@runtime_checkable
class Calibrating(Protocol):
    """A target that may measure ranges by itself, on real samples: `Neutral.samples`, of which none judges."""

    def samples_wanted(self, source: Neutral, settings: Mapping[str, Setting]) -> int:
        """How many it would take of a model with these settings; 0 where it needs none. Fewer, or none at all, may come."""
        ...
