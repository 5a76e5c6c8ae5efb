"""A QDQ file step by step, as ONNX defines its operators: nothing fused, nothing on integers but what the file says. What it means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lowbit.errors import RunError
from lowbit.export.named_session import NamedSession, fixed_size
from lowbit.quant.affine import Affine
from lowbit.quiet import no_telemetry
from lowbit.types import Array, Feeds, TensorInfo


def stepwise(path: Path, grids: Mapping[str, Affine]) -> NamedSession:
    """An .onnx file on onnxruntime without any optimization, on one thread: products in floating point, each result rounded to its grid.

    Args:
        path: Of the file.
        grids: Output -> its grid, of the rounded ones.

    Raises:
        RunError: it does not load; or later, it fails.
    """
    no_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception classes share no base below Exception
        raise RunError(f"{path.name} does not load in onnxruntime: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def ask(feeds: Feeds) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # likewise
            raise RunError(f"{path.name} fails in onnxruntime, step by step: {error}") from error

    inputs = [TensorInfo(info.name, tuple(info.shape), "float32") for info in session.get_inputs()]
    return NamedSession(ask, lambda: None, grids, size=fixed_size(inputs))
