"""Runs the command line in this process and returns what a shell would see."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Shell:
    """Exit code and both streams of one call."""

    code: int
    out: str
    err: str


def lowbit(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: object) -> Shell:
    """`lowbit ARGS`."""
    from lowbit.cli.main import main

    monkeypatch.setattr(sys, "argv", ["lowbit", *map(str, args)])
    capfd.readouterr()
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    streams = capfd.readouterr()
    return Shell(code, streams.out, streams.err)
