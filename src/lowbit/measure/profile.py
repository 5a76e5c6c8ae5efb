"""What each kernel of an artifact takes on a runtime: the runtime's own profile, from a process of its own.

A profiler slows down what it watches, by a little for each kernel: take shares from it, and the time of a call from a race.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lowbit.errors import RunError
from lowbit.measure.lane import Lane
from lowbit.measure.race import Variant, save_feeds
from lowbit.runtimes.base import Kernel
from lowbit.types import Feeds

REPEATS = 40
"""Calls that are profiled."""


def profile(variant: Variant, feeds: Feeds, *, batch: int, repeats: int = REPEATS, timeout_s: float = 300.0) -> tuple[Kernel, ...]:
    """Profiles a variant, alone in its process.

    Args:
        variant: Artifact, runtime, and tuning (one stream).
        feeds: One batch of real samples.
        batch: Samples in it.
        repeats: Calls that are profiled.
        timeout_s: For loading, and again for profiling.

    Returns:
        The kernels of a call in the order in which they ran; seconds as the profiler saw them.

    Raises:
        RunError: the artifact cannot be loaded or run, the process ended or hung, or the runtime has no profiler.
    """
    with tempfile.TemporaryDirectory() as folder, Lane() as lane:
        spec = {
            "runtime": variant.runtime,
            "model": str(variant.model.absolute()),
            "tuning": vars(variant.tuning),
            "feeds": str(save_feeds(feeds, Path(folder))),
            "batch": batch,
            "streams": 1,
        }
        lane.load(spec, timeout_s)
        answer = lane.ask({"profile": repeats}, timeout_s) if lane.error is None else None
        if answer is None:
            raise RunError(f"'{variant.model.name}' cannot be profiled on {variant.runtime}: {lane.error}")
    return tuple(Kernel(**{**each, "origins": tuple(each["origins"])}) for each in answer["kernels"])
