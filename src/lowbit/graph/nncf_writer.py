"""A candidate made by NNCF, where it is installed: the strongest peer is always in the race."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from lowbit.quiet import no_telemetry
from lowbit.types import Feeds

SUBSET = 300
"""Calibration batches at most; NNCF's own default."""


def installed() -> bool:
    return importlib.util.find_spec("nncf") is not None


def write_nncf(prepared: Path, out: Path, feeds: Sequence[Feeds], *, transformer: bool) -> Path:
    """Quantizes with NNCF's ONNX backend (SmoothQuant and fast bias correction at its defaults).

    Args:
        prepared: What `graph.prepare` wrote.
        out: Where the QDQ artifact goes.
        feeds: Calibration batches.
        transformer: Use NNCF's placement for attention blocks.
    """
    no_telemetry()
    import nncf
    import onnx

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # its progress bars do not belong into our output
        quantized = nncf.quantize(
            onnx.load_model(prepared),
            nncf.Dataset(list(feeds)),
            subset_size=min(len(feeds), SUBSET),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(quantized, out)
    return out
