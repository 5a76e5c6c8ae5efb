"""Triton's configuration of one model, from what was measured. Pure.

Sources: Triton's "Model Configuration", and the parameters that its onnxruntime and openvino backends read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowbit.bundle import sizes
from lowbit.errors import UsageError
from lowbit.export.servers.leaving import Leaving
from lowbit.export.servers.pbtxt import Word, parameters, to_text
from lowbit.types import Candidate, TensorInfo, Tuning

BACKENDS = ("onnxruntime", "openvino")
"""Triton's names of them are ours, too."""
MODEL_FILE = "model.onnx"

_TYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "object": "STRING",
    "str": "STRING",
}


@dataclass(frozen=True)
class Batching:
    """How requests are put together there.

    Attributes:
        most: Rows in a batch; 0 puts nothing together, and a request may have any number.
        preferred: Rows that are best run together, where that is fewer.
    """

    most: int
    preferred: int | None = None


@dataclass(frozen=True)
class Configured:
    """A model's configuration.

    Attributes:
        text: Of its config.pbtxt.
        batching: That was chosen.
        notes: What is different there, for people.
    """

    text: str
    batching: Batching
    notes: tuple[str, ...]


def configured(model: Leaving, *, about: Mapping[str, str], max_batch: int | None = None, window_s: float = 0.0) -> Configured:
    """The configuration of one model.

    Args:
        model: That leaves.
        about: Facts to keep with it, as parameters that Triton ignores.
        max_batch: Rows in a batch, 0 for no batching; None takes what was measured to be best.
        window_s: How long a batch may wait to fill.

    Raises:
        UsageError: no backend of Triton's can run it as it was measured, or rows cannot be put together as asked.
    """
    _check(model)
    batching = _batching(model, max_batch)
    message: dict[str, object] = {
        "name": model.name,
        "backend": model.candidate.runtime,
        "default_model_filename": MODEL_FILE,
        "max_batch_size": batching.most,
        "input": [_tensor(info, batching.most > 0) for info in model.inputs],
        "output": [_tensor(info, batching.most > 0) for info in model.outputs],
        "instance_group": [{"count": model.candidate.tuning.streams, "kind": Word("KIND_CPU")}],
    }
    if batching.most > 1:
        message["dynamic_batching"] = _dynamic(batching, window_s)
    message["parameters"] = parameters(_tuned(model.candidate, batching) | {f"lowbit.{key}": value for key, value in about.items()})
    return Configured(to_text(message), batching, tuple(_notes(model, batching)))


def _check(model: Leaving) -> None:
    candidate, tuning = model.candidate, model.candidate.tuning
    if candidate.runtime not in BACKENDS:
        allowed = " and ".join(BACKENDS)
        raise UsageError(
            f"'{candidate.id}' runs on {candidate.runtime}; Triton has {allowed}.", "Export another candidate: --candidate ID."
        )
    if tuning.precision == "f16":
        raise UsageError(
            f"'{candidate.id}' was measured in f16, which Triton's {candidate.runtime} cannot be asked for.",
            "Export another candidate: --candidate ID.",
        )
    for info in (*model.inputs, *model.outputs):
        if info.dtype not in _TYPES:
            raise UsageError(f"'{info.name}' is {info.dtype}, which Triton has no word for.", f"It has {', '.join(sorted(_TYPES))}.")
        if candidate.runtime == "openvino" and (_TYPES[info.dtype] == "STRING" or not info.shape):
            what = "text" if info.shape else "a scalar"
            raise UsageError(f"'{info.name}' is {what}, which Triton's openvino does not take.", "Export a candidate on onnxruntime.")


def _batching(model: Leaving, asked: int | None) -> Batching:
    """From the measurements; the openvino backend compiles one batch size and fills it up, so it gets no more than is useful."""
    if asked is not None:
        if asked and not model.apart:
            raise UsageError(f"Rows of different requests cannot share a run of '{model.candidate.id}'.", "Leave --max-batch out.")
        return Batching(asked)
    measured = [each for each in model.candidate.measurements if each.tokens is None]
    useful = sizes.largest_useful(measured)
    if not model.apart or useful == 1:
        return Batching(0)
    most = useful if model.candidate.runtime == "openvino" else max(each.batch for each in measured)
    return Batching(most, useful if useful < most else None)


def _tensor(info: TensorInfo, batched: bool) -> dict[str, object]:
    dims = [dim if isinstance(dim, int) else -1 for dim in info.shape[1 if batched else 0 :]]
    found: dict[str, object] = {"name": info.name, "data_type": Word(f"TYPE_{_TYPES[info.dtype]}"), "dims": dims or [1]}
    if not dims:  # dims may not be empty: clients send one number a row, the model gets it without that axis
        found["reshape"] = {"shape": []}
    return found


def _dynamic(batching: Batching, window_s: float) -> dict[str, object]:
    found: dict[str, object] = {}
    if batching.preferred:
        found["preferred_batch_size"] = [batching.preferred]
    if window_s:
        found["max_queue_delay_microseconds"] = round(1e6 * window_s)
    return found


def _tuned(candidate: Candidate, batching: Batching) -> dict[str, str]:
    """The runtime's settings, in the words of its backend."""
    return _onnxruntime(candidate.tuning) if candidate.runtime == "onnxruntime" else _openvino(candidate.tuning, batching)


def _onnxruntime(tuning: Tuning) -> dict[str, str]:
    # Each instance has a session, and threads, of its own.
    return {"intra_op_thread_count": str(max(1, tuning.threads // tuning.streams))} if tuning.threads else {}


def _openvino(tuning: Tuning, batching: Batching) -> dict[str, str]:
    found = {"PERFORMANCE_HINT": "THROUGHPUT" if tuning.streams > 1 else "LATENCY", "NUM_STREAMS": str(tuning.streams)}
    if tuning.threads:
        found["INFERENCE_NUM_THREADS"] = str(tuning.threads)
    if tuning.precision == "bf16":
        found["HINT_BF16"] = "YES"
    if batching.most > 1:
        found["ENABLE_BATCH_PADDING"] = "YES"
    return found


def _notes(model: Leaving, batching: Batching) -> Sequence[str]:
    found = []
    candidate = model.candidate
    if candidate.runtime == "openvino" and batching.most > 1:
        found.append(f"{model.name}: Triton's openvino fills every batch up to {batching.most} rows{_price(candidate, batching.most)}.")
        found[-1] += " --max-batch 0 runs requests as they come."
    if candidate.runtime == "openvino" and candidate.tuning.precision == "f32":
        found.append(
            f"{model.name}: Triton's openvino cannot be told to keep f32. On CPUs with bfloat16 it computes in that what is not integer, "
            "which was not measured here: compare a few answers, or export a candidate on onnxruntime."
        )
    return found


def _price(candidate: Candidate, batch: int) -> str:
    """What a lone request takes for it, where both times are known."""
    times = {each.batch: each.latency_ms.p50 for each in candidate.measurements if each.streams == 1 and each.tokens is None}
    return f": one alone takes {times[batch]:.3g} ms instead of {times[1]:.3g}" if {1, batch} <= times.keys() else ""
