"""OpenVINO's CPU plugin.

Two of its defaults are set aside. It compiles FP32 models to bfloat16 where the CPU has it: here the
precision is always pinned, f32 unless the tuning asks for another. And it reports usage: see lowbit.quiet.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from lowbit.errors import RunError
from lowbit.plugins import installed_version
from lowbit.quiet import no_telemetry
from lowbit.runtimes.base import DEFAULT, Kernel, check_feeds, need_batch, need_file, plain
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array, Dim, Feeds, TensorInfo, Tuning

CAPABILITIES = {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}

DTYPES = {
    "boolean": "bool",
    "string": "object",
    "bf16": "bfloat16",
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (4, 8, 16, 32, 64)},
}
"""openvino's type name -> numpy's. (Its own `to_dtype` turns bf16 into float16.)"""

PROFILE_BLOCKS = 4
"""Its counters are means over all calls since the model was compiled: of several such means the least has the fewest hiccups."""

PROFILE_WARM_UP = 5


class OpenVinoCpu:
    name = "openvino"

    def version(self) -> str | None:
        return installed_version("openvino")

    def describe(self) -> dict[str, str]:
        if self.version() is None:
            return {"name": self.name, "version": "not installed"}
        precisions = " ".join(self._precisions())
        return {"name": self.name, "version": self.version() or "", "device": "CPU", "precisions": precisions}

    def tunings(self, hardware: Hardware) -> tuple[Tuning, ...]:
        """Every native precision, f32 first; each with dynamic and fixed shape; one thread; one stream a core."""
        found = []
        for precision in self._precisions():
            found += [Tuning(precision=precision, fixed_shape=fixed) for fixed in (False, True)]
            if hardware.cores > 1:
                found.append(Tuning(threads=1, precision=precision, fixed_shape=True))
                found.append(Tuning(threads=hardware.cores, streams=hardware.cores, precision=precision, fixed_shape=True))
        return tuple(found)

    def open(self, path: Path, tuning: Tuning = DEFAULT, batch: int | None = None) -> OpenVinoSession:
        return self._open(path, batch, tuning, _config(tuning))

    def profile(
        self, path: Path, feeds: Feeds, *, tuning: Tuning = DEFAULT, batch: int | None = None, repeats: int = 20
    ) -> tuple[Kernel, ...]:
        """See `lowbit.runtimes.base.Profiler`. With dynamic shapes the number of elements is not known."""
        blocks = []
        for _ in range(PROFILE_BLOCKS):
            session = self._open(path, batch, tuning, {**_config(tuning), "PERF_COUNT": True})
            blocks.append(session.profile(feeds, max(1, repeats // PROFILE_BLOCKS)))
        made_of = session.kernels()
        found = []
        for name, kind in blocks[0]:
            origins, elements = made_of.get(name, ((), 0))
            found.append(Kernel(name, kind, origins, min(block[name, kind] for block in blocks if (name, kind) in block), elements))
        return tuple(found)

    def _open(self, path: Path, batch: int | None, tuning: Tuning, config: dict[str, Any]) -> OpenVinoSession:
        need_file(path)
        size = need_batch(tuning, batch)
        ov = _library()
        core = ov.Core()
        try:
            model = _read(ov, core, path)
            if size is not None:
                _fix_batch(model, size)
            compiled = core.compile_model(model, "CPU", config)
        except Exception as error:  # pybind turns the library's errors into RuntimeError, TypeError or ValueError
            raise error if isinstance(error, RunError) else _load_error(error, path) from error
        session = OpenVinoSession(compiled, path)
        if session.precision != tuning.precision:
            had = ", ".join(self._precisions())
            raise RunError(f"openvino has no {tuning.precision} arithmetic on this CPU; it has {had}.", "Use one of these precisions.")
        return session

    def _precisions(self) -> tuple[Any, ...]:
        capabilities = _library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(word for flag, word in CAPABILITIES.items() if flag in capabilities)


class OpenVinoSession:
    """See `lowbit.runtimes.base.Session`. A request belongs to one call at a time; idle ones wait in a queue."""

    def __init__(self, compiled: Any, path: Path) -> None:
        self._compiled = compiled
        self._path = path
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.inputs = tuple(_info(port, port.get_any_name()) for port in compiled.inputs)
        self.outputs = tuple(_info(port, _output_name(port)) for port in compiled.outputs)
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._open()
        check_feeds(self.inputs, feeds)
        request = self._request()
        try:
            request.infer(feeds, share_inputs=True)
            return {info.name: request.get_output_tensor(i).data.copy() for i, info in enumerate(self.outputs)}
        except Exception as error:
            raise RunError(f"openvino failed on '{self._path.name}': {plain(error, self._path)}.") from error
        finally:
            self._idle.put(request)

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        self.run(feeds)
        request, own = self._open().create_infer_request(), dict(feeds)
        # As much work as onnxruntime's `run`: inputs are read in place, outputs are copied out.
        return lambda: request.infer(own, share_inputs=True)

    def profile(self, feeds: Feeds, calls: int) -> dict[tuple[str, str], float]:
        """(kernel, kind) -> mean seconds of `calls` calls after a warm-up, for a session opened with its counters on."""
        check_feeds(self.inputs, feeds)
        request = self._open().create_infer_request()
        totals: list[dict[tuple[str, str], float]] = []
        for count in range(1, PROFILE_WARM_UP + calls + 1):
            request.infer(feeds, share_inputs=True)
            if count in (PROFILE_WARM_UP, PROFILE_WARM_UP + calls):
                # Whole microseconds, cut off: on average half of one is missing.
                done = [info for info in request.get_profiling_info() if str(info.status).endswith("EXECUTED")]
                totals.append({(info.node_name, info.node_type): count * (info.real_time.total_seconds() + 5e-7) for info in done})
        warm, all_ = totals
        return {key: max(0.0, all_[key] - warm.get(key, 0.0)) / calls for key in all_}

    def kernels(self) -> dict[str, tuple[tuple[str, ...], int]]:
        """Kernel -> names of the nodes it was made of, and number of elements of its output (0 where dynamic)."""
        found = {}
        for op in self._open().get_runtime_model().get_ordered_ops():
            origins = op.get_rt_info()["originalLayersNames"]
            shape = op.get_output_partial_shape(0) if op.get_output_size() else None
            elements = prod(dim.get_length() for dim in shape) if shape is not None and shape.is_static else 0
            found[op.get_friendly_name()] = tuple(filter(None, str(getattr(origins, "value", origins)).split(","))), elements
        return found

    def close(self) -> None:
        self._compiled = None
        self._idle = queue.SimpleQueue()

    def _open(self) -> Any:
        if self._compiled is None:
            raise RunError(f"The session of '{self._path.name}' is closed.", "Open it again.")
        return self._compiled

    def _request(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._open().create_infer_request()


def _library() -> Any:
    no_telemetry()
    import openvino

    return openvino


def _read(ov: Any, core: Any, path: Path) -> Any:
    """Asked first, because on a file of no known format every other front end gets its try, and prints about it."""
    if not ov.frontend.FrontEndManager().load_by_framework("onnx").supported(str(path)):
        raise _not_onnx(path)
    return core.read_model(path)


def _config(tuning: Tuning) -> dict[str, Any]:
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": tuning.precision}
    if tuning.streams > 1:
        config |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": tuning.streams}
    else:
        config |= {"PERFORMANCE_HINT": "LATENCY"}
    if tuning.threads:
        config["INFERENCE_NUM_THREADS"] = tuning.threads
    return config


def _fix_batch(model: Any, size: int) -> None:
    """Sets the inputs' dynamic first axes to `size`; other dynamic axes stay dynamic."""
    shapes = {port: port.partial_shape for port in model.inputs}
    for shape in shapes.values():
        if len(shape) and shape[0].is_dynamic:
            shape[0] = size
    model.reshape(shapes)


def _info(port: Any, name: str) -> TensorInfo:
    dims: tuple[Dim, ...] = tuple(dim.get_length() if dim.is_static else None for dim in port.partial_shape)
    dtype = port.element_type.get_type_name()
    return TensorInfo(name, dims, DTYPES.get(dtype, dtype))


def _output_name(port: Any) -> str:
    """A tensor may carry several names after simplification; the result node remembers the one that was the output's."""
    name = re.sub(r"/sink_port_\d+$", "", port.get_node().get_friendly_name())
    return name if name in port.get_names() else port.get_any_name()


def _load_error(error: Exception, path: Path) -> RunError:
    text = plain(error, path)
    if match := re.search(r"No conversion rule found for operations: ([^\s,]+)", text):
        op = re.sub(r"-\d+$", "", match[1])
        return RunError(f"openvino has no operator '{op}', which '{path.name}' uses.", "Export the model with standard ONNX operators.")
    if "can't be parsed" in text:
        return _not_onnx(path)
    return RunError(f"openvino cannot load '{path.name}': {text}.")


def _not_onnx(path: Path) -> RunError:
    return RunError(f"'{path.name}' is not an ONNX file, or it is cut off.", "Export or download it again.")
