"""What goes into and comes out of a file that was converted elsewhere: kept in the file, as with those that we write ourselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lowbit import __version__
from lowbit.errors import ModelError
from lowbit.export.litert import outline
from lowbit.export.litert.writer import IDENTIFIER, aligned

WAY = "recalibrated"


@dataclass(frozen=True)
class End:
    """One input or output.

    Attributes:
        name: In the source model.
        dtype: There.
        shape: There, with every size that the file has fixed.
        open: Axis -> name of its size, of axes that the source leaves open beside the first: what is fed is filled up with zeros.
        permutation: Axes of the source's array in the file's order; None where they are the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    open: Mapping[int, str]
    permutation: tuple[int, ...] | None = None

    @property
    def lying(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.shape if self.permutation is None else tuple(self.shape[axis] for axis in self.permutation)


@dataclass(frozen=True)
class Ends:
    """All of them, in the file's order.

    Attributes:
        name: Of the model.
        recipe: By which it was quantized.
    """

    name: str
    recipe: str
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]


def read(content: bytes, schema: Any) -> Ends | None:
    """The ends of a file that was made this way; None where it was not.

    Args:
        content: Of a .tflite file.
        schema: The classes of the flatbuffer.
    """
    said = outline.said(schema.Model.GetRootAs(content, 0))
    if said is None or said.get("way") != WAY:
        return None
    inputs, outputs = (tuple(_end(entry) for entry in said[key]) for key in ("inputs", "outputs"))
    return Ends(said["name"], said["recipe"], inputs, outputs)


def dressed(content: bytes, ends: Ends, described: Mapping[str, bytes], schema: Any) -> bytes:
    """The file with the source's names, our description, and its ends.

    Args:
        content: Of a .tflite file whose inputs are called args_0, args_1, ... and its outputs output_0, ...: the source's, in order.
        ends: In the source's order.
        described: Further metadata buffers by name.
        schema: The classes of the flatbuffer.
    """
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    ordered = [_named(*pair, graph) for pair in ((ends.inputs, signature.inputs), (ends.outputs, signature.outputs))]
    inputs, outputs = (
        tuple(by_tensor[number] for number in numbers) for by_tensor, numbers in zip(ordered, (graph.inputs, graph.outputs), strict=True)
    )
    told = {"way": WAY, **asdict(Ends(ends.name, ends.recipe, inputs, outputs))}
    model.description = f"{ends.name}, converted by litert-torch and ai-edge-quantizer for lowbit {__version__}"
    model.metadata = [*(model.metadata or [])]
    for name, data in {**described, outline.NAME: json.dumps(told, separators=(",", ":")).encode()}.items():
        model.metadata.append(schema.MetadataT(name=name, buffer=len(model.buffers)))
        model.buffers.append(schema.BufferT(data=data))
    model.buffers = [aligned(_content(buffer, content), schema) for buffer in model.buffers]
    builder = flatbuffers.Builder(len(content) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _named(ends: tuple[End, ...], maps: list[Any], graph: Any) -> dict[int, End]:
    """Number of a tensor -> its end; the signature's names become the source's."""
    ordered = sorted(maps, key=lambda entry: int(entry.name.decode().rpartition("_")[2]))
    if len({entry.tensorIndex for entry in ordered}) < len(ordered):
        names = ", ".join(f"'{end.name}'" for end in ends)
        raise ModelError(f"Of {names} two are one tensor in the converted file, and answers could not be told apart.", "Leave one out.")
    for end, entry in zip(ends, ordered, strict=True):
        entry.name = end.name
        graph.tensors[entry.tensorIndex].name = end.name
    return {entry.tensorIndex: end for end, entry in zip(ends, ordered, strict=True)}


def _content(buffer: Any, content: bytes) -> Any:
    """A buffer's bytes; ai-edge-quantizer puts them behind the flatbuffer, and says where in the file they begin."""
    return content[buffer.offset : buffer.offset + buffer.size] if buffer.offset > 1 else buffer.data


def _end(entry: dict[str, Any]) -> End:
    permutation = entry["permutation"]
    return End(
        entry["name"],
        entry["dtype"],
        tuple(entry["shape"]),
        {int(axis): size for axis, size in entry["open"].items()},
        None if permutation is None else tuple(permutation),
    )
