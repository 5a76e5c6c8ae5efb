"""Keeps the libraries below quiet: from reporting home, from writing to the user's home for that end, and from talking over us.

onnxruntime (1.29 and later, not only on Windows) sends model and session facts to its maker, and keeps a
device id and a database of events in the cache folder. `ORT_DISABLE_TELEMETRY=1`, set before it is
imported, turns all of it off; its `disable_telemetry_events()` comes too late for the first event.

openvino and nncf send usage events through the package `openvino_telemetry`, by default without asking:
importing `openvino` alone creates a client id and a counter in `~/intel/`. The documented opt-out writes
a consent file into the user's home, and would change a choice that is theirs. Both libraries treat the
package as optional, though, and fall back to an empty stub where it cannot be imported; so lowbit makes
it unimportable in its own process.

A program that imports those libraries itself, before lowbit does, keeps the telemetry that it chose.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


def no_telemetry() -> None:
    """Turns telemetry off for this process and those it starts. Call it before importing onnxruntime, openvino or nncf."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None blocks an import (language reference 5.3.1)


@contextmanager
def no_warnings(most: int = logging.WARNING) -> Iterator[None]:
    """Holds back log lines up to a level: a library's advice to someone who calls it directly is noise to our users."""
    previous = logging.root.manager.disable
    logging.disable(most)
    try:
        yield
    finally:
        logging.disable(previous)


@contextmanager
def no_output(most: int = logging.WARNING) -> Iterator[None]:
    """Holds back all that a library prints, warns and logs (up to a level); what matters is in its exceptions."""
    with no_warnings(most), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
