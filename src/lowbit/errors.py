"""Every error a user can cause, in one tree; each knows its exit code.

    LowbitError            1  our fault, or nothing more precise is known
    ├── UsageError         2  the call is wrong: an option, an output folder, a missing extra
    ├── ModelError         3  the model cannot be used
    │   └── RunError       3  a runtime could not load or run an artifact
    ├── DataError          3  the data cannot be used
    └── Interrupted        4  stopped before the end; the same command resumes

A message says what was found and what is allowed; `hint` says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowbitError(Exception):
    """Base of all errors shown to a user without a traceback.

    Args:
        message: What was found, and what is allowed.
        hint: What to do next; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(LowbitError):
    """The call is wrong: an unknown option value, a bad output folder, a missing extra."""

    exit_code = 2


class ModelError(LowbitError):
    """The model is missing, broken, or needs what no runtime here has."""

    exit_code = 3


class RunError(ModelError):
    """A runtime could not load or run an artifact."""


class DataError(LowbitError):
    """The data is missing, broken, too little, or does not fit the model."""

    exit_code = 3


class Interrupted(LowbitError):
    """Stopped before the end (Ctrl-C, a full disk); the same command resumes."""

    exit_code = 4


def unknown(kind: str, name: object, allowed: Iterable[str]) -> UsageError:
    """An error for a name that is not in a list, with the nearest name that is.

    >>> print(unknown("runtime", "onxruntime", ["onnxruntime", "openvino"]))
    Unknown runtime 'onxruntime'. Allowed: onnxruntime, openvino.
    Did you mean 'onnxruntime'?
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else None
    return UsageError(f"Unknown {kind} '{name}'. Allowed: {', '.join(names)}.", hint)
