"""onnxruntime's CPU provider: the runtime that the baseline is measured on.

With `Tuning()` all options are the library's defaults, which is what "baseline" means.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from lowbit.errors import RunError
from lowbit.plugins import installed_version
from lowbit.quiet import no_telemetry
from lowbit.runtimes.base import DEFAULT, Kernel, check_feeds, need_batch, need_file, plain
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array, Feeds, TensorInfo, Tuning

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
FATAL = 4  # the log level; what goes wrong comes as an exception, no need to print it as well

LACKING = re.compile(r"(\S+?)\(-?\d+\) is not a registered function/op|No Op registered for (\S+)|implementation for (\w+)")
"""How the library says that it has no such operator, in its three places."""

DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "string": "object",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)},
}
"""onnxruntime's word in `tensor(...)` -> numpy's name."""

PROFILE_WARM_UP = 5

MADE_UP = re.compile(r"(_kernel_time|_nchwc|_token_\d+|/duplicated)$")
"""What the library's optimizers, and its profiler, append to the name of a node (or of a tensor, in `_nchwc`)."""


class OnnxRuntimeCpu:
    name = "onnxruntime"

    def version(self) -> str | None:
        return installed_version("onnxruntime", *DISTRIBUTIONS)

    def describe(self) -> dict[str, str]:
        if self.version() is None:
            return {"name": self.name, "version": "not installed"}
        return {"name": self.name, "version": _library().__version__, "device": "CPU", "precisions": "f32"}

    def tunings(self, hardware: Hardware) -> tuple[Tuning, ...]:
        """Default; as many threads as may be used, where the default is not that; one thread; one stream a core."""
        found = [Tuning()]
        if hardware.cores != hardware.physical_cores:
            found.append(Tuning(threads=hardware.cores))
        if hardware.cores > 1:
            found += [Tuning(threads=1), Tuning(threads=hardware.cores, streams=hardware.cores)]
        return tuple(found)

    def open(self, path: Path, tuning: Tuning = DEFAULT, batch: int | None = None) -> OnnxRuntimeSession:
        return self._open(path, tuning, batch)

    def profile(
        self, path: Path, feeds: Feeds, *, tuning: Tuning = DEFAULT, batch: int | None = None, repeats: int = 20
    ) -> tuple[Kernel, ...]:
        """See `lowbit.runtimes.base.Profiler`; of each kernel the lower quartile, because what disturbs a call only ever adds time."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(path, tuning, batch, profile=Path(folder) / "profile")
            for _ in range(PROFILE_WARM_UP + repeats):
                session.run(feeds)
            events = json.loads(session.end_profiling().read_text())
        return _kernels(list(_calls(events))[PROFILE_WARM_UP:])

    def _open(self, path: Path, tuning: Tuning, batch: int | None, profile: Path | None = None) -> OnnxRuntimeSession:
        if tuning.precision != "f32":
            raise RunError(f"onnxruntime's CPU provider has no {tuning.precision} arithmetic; it has f32.", "Use precision f32 there.")
        need_file(path)
        ort = _library()
        options = _options(ort, path, tuning, batch)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's classes share no base but Exception
            raise _load_error(error, path) from error
        return OnnxRuntimeSession(session, path)


class OnnxRuntimeSession:
    """See `lowbit.runtimes.base.Session`. The library's `run` is safe to call from several threads."""

    precision = "f32"

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._path = path
        self.inputs = tuple(_info(value) for value in session.get_inputs())
        self.outputs = tuple(_info(value) for value in session.get_outputs())

    def run(self, feeds: Feeds) -> dict[str, Array]:
        session = self._open()
        check_feeds(self.inputs, feeds)
        try:
            values = session.run(None, feeds)
        except Exception as error:
            raise RunError(f"onnxruntime failed on '{self._path.name}': {_clean(error, self._path)}.") from error
        return {info.name: value for info, value in zip(self.outputs, values, strict=True)}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        self.run(feeds)
        session, own = self._open(), dict(feeds)
        return lambda: session.run(None, own)

    def end_profiling(self) -> Path:
        """The file with all events, for a session that was opened to be profiled."""
        return Path(self._open().end_profiling())

    def close(self) -> None:
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise RunError(f"The session of '{self._path.name}' is closed.", "Open it again.")
        return self._session


def _library() -> Any:
    no_telemetry()
    import onnxruntime as ort

    if hasattr(ort, "disable_telemetry_events"):  # on Windows there is no other way
        ort.disable_telemetry_events()
    ort.set_default_logger_severity(FATAL)
    return ort


def _options(ort: Any, path: Path, tuning: Tuning, batch: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    if tuning.threads:
        # Calls in flight compute in their own threads too: with the pool's they are `threads` in all.
        options.intra_op_num_threads = max(1, tuning.threads - tuning.streams + 1)
    if (size := need_batch(tuning, batch)) is not None:
        for axis in _batch_axes(path):
            options.add_free_dimension_override_by_name(axis, size)
    return options


def _batch_axes(path: Path) -> set[str]:
    """Names of the inputs' dynamic first axes."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise _load_error(error, path) from error
    shapes = (value.type.tensor_type.shape.dim for value in graph.input)
    return {dims[0].dim_param for dims in shapes if dims and dims[0].dim_param}


def _info(value: Any) -> TensorInfo:
    match = re.fullmatch(r"tensor\((\w+)\)", value.type)
    shape = tuple(dim if isinstance(dim, int) or dim else None for dim in value.shape)
    return TensorInfo(value.name, shape, DTYPES.get(match[1], match[1]) if match else value.type)


def _calls(events: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The node events of each call; the event of a call comes after those of its nodes."""
    nodes: list[dict[str, Any]] = []
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            nodes.append(event)
        elif event["name"] == "model_run":
            yield nodes
            nodes = []


def _kernels(calls: Sequence[Sequence[dict[str, Any]]]) -> tuple[Kernel, ...]:
    """The lower quartile over calls; a kernel that a loop runs several times counts with all of them."""
    first: dict[str, dict[str, Any]] = {}
    totals: list[dict[str, float]] = []
    for events in calls:
        totals.append({})
        for event in events:
            first.setdefault(event["name"], event)
            totals[-1][event["name"]] = totals[-1].get(event["name"], 0.0) + event["dur"] / 1e6
    found = []
    for name, event in first.items():
        seconds = sorted(total.get(name, 0.0) for total in totals)[len(totals) // 4]
        found.append(Kernel(name, event["args"]["op_name"], (_origin(name),), seconds, _elements(event["args"])))
    return tuple(found)


def _origin(name: str) -> str:
    while match := MADE_UP.search(name):
        name = name[: match.start()]
    return name


def _elements(arguments: dict[str, Any]) -> int:
    """Of the first output, from `[{"float": [8, 16]}]`."""
    shapes = arguments.get("output_type_shape") or [{}]
    return prod(next(iter(shapes[0].values()))) if shapes[0] else 0


def _load_error(error: Exception, path: Path) -> RunError:
    text = _clean(error, path)
    if match := LACKING.search(text):
        op = (match[1] or match[2] or match[3]).replace(":", ".")
        return RunError(f"onnxruntime has no operator '{op}', which '{path.name}' uses.", "Export the model with standard ONNX operators.")
    if "INVALID_PROTOBUF" in str(error) or "Error parsing message" in text:
        return RunError(f"'{path.name}' is not an ONNX file, or it is cut off.", "Export or download it again.")
    return RunError(f"onnxruntime cannot load '{path.name}': {text}.")


def _clean(error: Exception, path: Path) -> str:
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from \S+ failed:)?", "", plain(error, path))
