"""Models in memory, opened in onnxruntime with inner tensors, probes or switches as their outputs."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import DataError, ModelError
from lowbit.graph import ir_files
from lowbit.graph.load import external_files
from lowbit.graph.probes import MARK
from lowbit.quiet import no_telemetry
from lowbit.types import Feeds

if TYPE_CHECKING:
    import onnx


def read_model(path: Path) -> onnx.ModelProto:
    """The model without external data; initializers that old exporters list as inbound are taken off the inputs.

    Raises:
        ModelError: no such file, or not a readable one.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"There is no model at '{path}'.", "Give the path of an ONNX file.") from error
    except Exception as error:  # protobuf's DecodeError, and whatever else a broken file causes
        raise ModelError(f"'{path.name}' is not a readable ONNX file: {error}", "Export it again.") from error
    weights = {t.name for t in model.graph.initializer}
    kept = [v for v in model.graph.input if v.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)  # below, every initializer must be an input
    return model


def show(model: onnx.ModelProto, tensors: Iterable[str]) -> list[str]:
    """Makes some inner tensors the outputs of a model, in place, and returns which: its inputs are left out.

    Where none is left, the model keeps an output, as it must have one.
    """
    import onnx

    inner = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in tensors if name in inner]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted or [model.graph.node[-1].output[0]])
    return wanted


def open_session(model: onnx.ModelProto, path: Path, threads: int, purpose: str) -> Any:
    """An onnxruntime session of a model that was made from the file at `path`, whose external data it reads.

    Args:
        model: What to run.
        path: Where it came from.
        threads: For the runtime; 0 means all cores.
        purpose: For the error message, e.g. "for calibration".

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    no_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # one planned block holds more than is ever alive: 100 MB more for ResNet-50 at batch 8
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.resolve().parent))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ModelError(f"onnxruntime cannot load '{path.name}' {purpose}: {str(error).splitlines()[0]}") from error


def one_more(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a batch with one more sample, for the inputs whose batch size is free."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input}
    free = {name for name, dim in dims.items() if not dim or not dim[0].HasField("dim_value")}
    return {name: (shape[0] + 1, *shape[1:]) if shape and name in free else shape for name, shape in shapes.items()}


def misfit(session: Any, feeds: Feeds, error: Exception) -> DataError | ModelError:
    """What to say of a batch that a session could not run: the data's fault where shapes or types differ, else the model's."""
    wanted = {i.name: f"{i.type} {i.shape}" for i in session.get_inputs() if MARK not in i.name}
    given = {name: f"{feed.dtype} {list(feed.shape)}" for name, feed in feeds.items()}
    message = f"The model could not run a calibration batch: {str(error).splitlines()[0]}"
    hint = f"The model takes {wanted}, the batch has {given}."
    kind = type(error).__name__
    return DataError(message, hint) if kind in ("InvalidArgument", "ValueError") else ModelError(message, hint)


@contextmanager
def apart(path: Path) -> Iterator[Path]:
    """The same model with large weights in a file of their own, for as long as it is needed, see `split_off`."""
    with tempfile.TemporaryDirectory() as folder:
        yield split_off(path, Path(folder))


def split_off(path: Path, folder: Path) -> Path:
    """Writes a model with its large weights in a file of their own to `folder`; where that saves nothing, the model itself will do.

    onnxruntime maps such a file, and onnx-ir reads from it what it is asked for. Weights inside the model would be in memory
    as bytes, parsed, and in the layout of the runtime, all at once.
    """
    trim()
    if path.stat().st_size < ir_files.LARGE or external_files(path):
        return path
    light = folder / path.name
    ir_files.write_apart(ir_files.read(path), light)
    trim()
    return light


def trim() -> None:
    """Gives memory that was freed back to the system, where the C library keeps it (glibc does)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
