"""Open an ONNX file as a `Model`, refusing what cannot be right before any work is done on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError
from lowbit.types import Dim, Model, TensorInfo

if TYPE_CHECKING:
    import onnx

MAX_NAMED = 3  # how many offending tensors an error message names


def load_model(path: str | Path) -> Model:
    """Checks an ONNX file and describes it; the file is never changed.

    Raises:
        ModelError: no such file, not ONNX, truncated, external data missing, weights that are NaN or infinite.
    """
    path = Path(path)
    proto = _parse(path)
    external = _external_files(proto, path)
    _check(proto, path)
    _check_weights(proto, path)
    graph = proto.graph
    initializers = {tensor.name for tensor in graph.initializer}
    return Model(
        path=path,
        sha256=_digest([path, *external]),
        inputs=tuple(_info(value) for value in graph.input if value.name not in initializers),
        outputs=tuple(_info(value) for value in graph.output),
        parameters=sum(_count(tensor.dims) for tensor in _all_initializers(graph)),
        size_bytes=sum(file.stat().st_size for file in [path, *external]),
        opset=next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1),
    )


def artifact_size(path: Path) -> int:
    """Bytes of an .onnx file with its external data."""
    return path.stat().st_size + sum(file.stat().st_size for file in _external_files(_parse(path), path))


def external_files(path: Path) -> list[Path]:
    """The external data files of an .onnx file, all of which exist."""
    return _external_files(_parse(path), path)


def graph_inputs(path: Path) -> frozenset[str]:
    """Names of the inputs that must be fed."""
    graph = _parse(path).graph
    return frozenset(value.name for value in graph.input) - {tensor.name for tensor in graph.initializer}


def operator_counts(path: Path) -> dict[str, int]:
    """How often each operator type occurs, subgraphs included."""
    counts: dict[str, int] = {}
    for node in _all_nodes(_parse(path).graph):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise ModelError(f"There is no file '{path}'.", "Give the path of an .onnx file.")
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder, not an .onnx file.", "Give the .onnx file inside it.")
    if path.stat().st_size == 0:
        raise ModelError(f"'{path.name}' is empty.", "Export the model again.")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise _not_onnx(path) from error
    except OSError as error:
        raise ModelError(f"'{path.name}' cannot be read: {error.strerror or error}.") from error
    if proto.ir_version == 0 or not proto.HasField("graph") or not proto.graph.output:
        raise _not_onnx(path)
    return proto


def _not_onnx(path: Path) -> ModelError:
    if path.suffix in (".pt", ".pth", ".th", ".bin", ".safetensors", ".ckpt"):
        return ModelError(
            f"'{path.name}' looks like a PyTorch file, not an ONNX model.",
            "Export it first: torch.onnx.export(model, (example,), 'model.onnx').",
        )
    return ModelError(
        f"'{path.name}' ({path.stat().st_size:,} bytes) is not a whole ONNX model: it is another format, or was cut off.",
        "Export or copy it again; `python -m onnx.checker` says more about a file that is nearly right.",
    )


def _check(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    try:
        # The path form also finds external data and has no 2 GB limit.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if any(node.domain not in ("", "ai.onnx") for node in _all_nodes(proto.graph)) and "No opset import" not in str(error):
            return  # the checker knows no custom operators; whether a runtime has them is for the runtime to say
        raise ModelError(
            f"'{path.name}' is not a valid ONNX model: {_first_line(error)}", "Export it again, or fix it with onnx's tools."
        ) from error
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"'{path.name}' is not a valid ONNX model: {_first_line(error)}") from error


def _external_files(proto: onnx.ModelProto, path: Path) -> list[Path]:
    import onnx

    names: dict[str, int] = {}
    for tensor in _all_initializers(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        name = entries.get("location", "")
        names[name] = max(names.get(name, 0), end)
    for name, end in names.items():
        file = path.parent / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(
                f"'{path.name}' keeps weights outside its own folder ('{name}').", "Save it again with external data beside the model."
            )
        if not file.is_file():
            raise ModelError(f"'{path.name}' keeps its weights in '{name}', which is not beside it.", f"Copy '{name}' next to the model.")
        if file.stat().st_size < end:
            raise ModelError(
                f"'{name}' has {file.stat().st_size:,} bytes, but '{path.name}' needs {end:,}: it was cut off.", "Copy it again."
            )
    return [path.parent / name for name in sorted(names)]


def _check_weights(proto: onnx.ModelProto, path: Path) -> None:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    broken = [
        tensor.name
        for tensor in _all_initializers(proto.graph)
        if tensor.data_type in floats
        and not np.isfinite(numpy_helper.to_array(tensor, str(path.parent))).all()
        and not _is_mask(numpy_helper.to_array(tensor, str(path.parent)))
    ]
    if broken:
        more = f" and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
        raise ModelError(
            f"'{path.name}' has weights that are NaN or infinite: {', '.join(broken[:MAX_NAMED])}{more}.",
            "The training diverged or the export is broken; start from a checkpoint whose weights are finite.",
        )


def _is_mask(values: Any) -> bool:
    """Attention masks are constants of 0 and minus infinity: legitimate, unlike NaN or a stray infinity in a weight."""
    import numpy as np

    return not np.isnan(values).any() and bool(np.isin(values, (0.0, -np.inf)).all())


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                yield from _all_nodes(subgraph)


def _all_initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield attribute.t
            for subgraph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                yield from _all_initializers(subgraph)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    import numpy as np
    from onnx import helper

    tensor = value.type.tensor_type
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        dims.append(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name if tensor.elem_type else "float32"
    return TensorInfo(value.name, tuple(dims), dtype)


def _count(dims: Any) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
