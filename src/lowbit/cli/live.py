"""What a search looks like while it runs: a live table in a terminal, plain lines anywhere else. Always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from lowbit.pipeline.reporting import Reporter

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lowbit.types import Candidate

EVERY_S = 10.0
"""How often a long stage gets a line where there is no terminal."""


@contextmanager
def reporter_for(stream: TextIO) -> Iterator[Reporter]:
    """A reporter that suits where stderr goes."""
    if not stream.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    board = Board(console.width)
    with Live(console=console, get_renderable=board.render, refresh_per_second=4, transient=True):
        yield board


def phrase(candidate: Candidate) -> str:
    """One candidate on one line."""
    from lowbit.bundle import words

    parts = [candidate.id]
    evidence = candidate.evidence
    if evidence is not None and evidence.broken is None:
        parts.append(f"{words.metric_name(evidence.metric.name)} {words.metric_value(evidence.metric.name, evidence.metric.value)}")
    for entry in candidate.measurements:
        if entry.streams == 1 and entry.speedup is not None:
            parts.append(f"{words.milliseconds(entry.latency_ms.p50)} at batch {entry.batch} ({words.times(entry.speedup.value)})")
    parts.append(words.size(candidate.size_bytes))
    if candidate.status != "done":
        parts.append(f"{candidate.status}: {candidate.reasons[0] if candidate.reasons else ''}")
    return "  ".join(part for part in parts if part != words.NONE)


class Clock:
    """Time spent in a stage, and the time left at the pace so far."""

    def __init__(self, total: int | None) -> None:
        self.total, self.done, self.started = total, 0, time.monotonic()

    def left(self) -> str:
        if not self.total or not self.done:
            return ""
        seconds = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


class Lines(Reporter):
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self.clock = Clock(None)
        self.name = ""
        self.said = 0.0

    def stage(self, name: str, total: int | None = None) -> None:
        self.name, self.clock, self.said = name, Clock(total), time.monotonic()
        click.echo(f"• {name}", err=True)

    def advance(self, done: int) -> None:
        self.clock.done = done
        if time.monotonic() - self.said >= EVERY_S and self.clock.total:
            self.said = time.monotonic()
            click.echo(f"  {self.name}: {done:,} of {self.clock.total:,}, {self.clock.left()}", err=True)

    def candidate(self, candidate: Candidate) -> None:
        click.echo(f"  {phrase(candidate)}", err=True)

    def note(self, text: str) -> None:
        # What is about to happen is for a live board; a log keeps what happened.
        if not text.startswith(("Timing", "Evaluating", "Confirming", "Tuning")):
            click.echo(f"  {text}", err=True)


class Board(Reporter):
    """A table of candidates with the running stage below it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.candidates: dict[str, Candidate] = {}
        self.notes: list[str] = []
        self.name, self.detail, self.clock = "", "", Clock(None)

    def stage(self, name: str, total: int | None = None) -> None:
        self.name, self.detail, self.clock = name, "", Clock(total)

    def advance(self, done: int) -> None:
        self.clock.done = done

    def candidate(self, candidate: Candidate) -> None:
        self.candidates[candidate.id] = candidate

    def note(self, text: str) -> None:
        if text.startswith(("Timing", "Evaluating", "Confirming", "Tuning")):
            self.detail = text
        else:
            self.notes.append(text)

    def render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from lowbit.cli.show import candidate_table

        parts: list[RenderableType] = [Text(note, style="yellow") for note in self.notes]
        if self.candidates:
            parts.append(candidate_table(list(self.candidates.values()), width=self.width))
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.clock.total, completed=self.clock.done, width=20, pulse=self.clock.total is None)
        line.add_row(Text(self.name, style="bold", no_wrap=True), bar, Text(self.clock.left(), no_wrap=True))
        detail = Text(self.detail, style="dim", no_wrap=True, overflow="ellipsis")
        return Group(*parts, line, detail)
