"""The exported file against the module that it came from, on real samples: the export is measured, not believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import ModelError, RunError
from lowbit.types import Array, Feeds, Parity

Run = Callable[[Feeds], list[Array]]
"""Feeds -> outputs, in the file's order."""

LIMIT = 1e-2
"""Difference, relative to an output's largest value, from which an export is refused. Another order of float32 additions stays
below 1e-4; what is beyond is another computation."""


def check_parity(run: Run, path: Path, batches: Iterable[Feeds]) -> Parity:
    """Compares an exported file on onnxruntime with what it came from.

    Args:
        run: The module.
        path: The exported file.
        batches: Real samples as the model takes them.

    Raises:
        ModelError: the two differ by more than `LIMIT`.
        RunError: onnxruntime cannot run the file.
    """
    session, parts = _session(path), []
    for feeds in batches:
        parts.append((run(feeds), list(session.run(None, feeds))))
    found = compare([expected for expected, _ in parts], [actual for _, actual in parts])
    if not found.max_rel <= LIMIT:
        raise ModelError(
            f"The exported model does not compute what the module does: on {found.n} real samples outputs differ by up to "
            f"{found.max_rel:.1e} of their largest value (allowed: {LIMIT:g}){_agreeing(found)}.",
            "Random steps (dropout by hand, sampling) or state that changes from call to call cannot be exported; take them out.",
        )
    return found


def compare(expected: list[list[Array]], actual: list[list[Array]]) -> Parity:
    """Differences over batches of outputs. Pure.

    Args:
        expected: Batch -> outputs [N, ...] of the module.
        actual: The same of the file.

    Returns:
        `max_rel` is relative to the largest magnitude of that output anywhere; `agreement` is the share of rows of the first
        floating-point output whose largest value along the last axis is at the same place, None where that axis has one value.
    """
    count, worst, relative = sum(len(batch[0]) for batch in expected), 0.0, 0.0
    for index in range(len(expected[0])):
        wanted, found = ([np.asarray(batch[index], np.float64).ravel() for batch in side] for side in (expected, actual))
        one, other = np.concatenate(wanted), np.concatenate(found)
        if one.shape != other.shape or not np.isfinite(other[np.isfinite(one)]).all():
            return Parity(count, float("inf"), float("inf"), None)
        finite = np.isfinite(one)
        gap = float(np.abs(one - other)[finite].max(initial=0.0))
        worst, relative = max(worst, gap), max(relative, gap / max(float(np.abs(one[finite]).max(initial=0.0)), 1e-12))
    floats = next((index for index, values in enumerate(expected[0]) if values.dtype.kind == "f" and values.ndim > 1), None)
    if floats is None or expected[0][floats].shape[-1] < 2:
        return Parity(count, worst, relative, None)
    same = [np.ravel(a[floats].argmax(-1) == b[floats].argmax(-1)) for a, b in zip(expected, actual, strict=True)]
    return Parity(count, worst, relative, float(np.concatenate(same).mean()))


def described(parity: Parity) -> str:
    """In a sentence."""
    return (
        f"The exported model was compared with its source on {parity.n} real samples: outputs differ by at most "
        f"{parity.max_abs:.1e} ({parity.max_rel:.1e} of their largest value){_agreeing(parity)}."
    )


def _agreeing(parity: Parity) -> str:
    return "" if parity.agreement is None else f"; the largest output is the same in {parity.agreement:.2%}"


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunError(f"onnxruntime cannot load the exported model: {str(error).splitlines()[0]}") from error
