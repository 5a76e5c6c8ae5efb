"""What a .tflite file says of itself: labels, pixel sizes and normalization, in TensorFlow Lite's own metadata format.

The format is public (tflite-support, metadata_schema.fbs, version 1.1.0): a flatbuffer with the identifier "M001" in a metadata
buffer named "TFLITE_METADATA", and the files it names in a zip archive behind the model. Its schema comes with no package that installs
here, so the few tables that are needed are written by the numbers of their fields, which stand below.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import __version__
from lowbit.data.preprocess import Preprocess
from lowbit.export.program.program import Port, Program

if TYPE_CHECKING:
    import flatbuffers

NAME = "TFLITE_METADATA"
LABELS = "labels.txt"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"
"""Oldest reader that understands all of it."""
_FEATURE, _IMAGE = 1, 2
_NORMALIZATION = 1
_AXIS_LABELS = 2
_COLOURS = {"rgb": 1, "grey": 2}
_LONGEST_AGO = (1980, 1, 1, 0, 0, 0)
"""The zip archive's own beginning of time: the same model makes the same file."""


def describe(program: Program, preprocess: Preprocess | None, labels: Sequence[str], outputs: Sequence[Port]) -> bytes:
    """The metadata's flatbuffer.

    Args:
        program: That the model was written from.
        preprocess: What is done to samples before; size, channel order and normalization of it can be said here, resizing and cropping
            only in words.
        labels: Names of the classes; the first output whose last axis is as long gets them.
        outputs: The program's.

    Returns:
        The bytes of a buffer named `NAME`; where there are labels, `attach` adds the file that it refers to.
    """
    import flatbuffers

    tables = _Tables(flatbuffers.Builder(256))
    labelled = next((port for port in outputs if labels and port.shape[-1] == len(labels)), None)
    inputs = tables.vector(_input(tables, program, port, preprocess) for port in program.inputs)
    answers = tables.vector(_output(tables, port, port is labelled) for port in outputs)
    graphs = tables.vector([tables.table(7, text={0: program.name}, offsets={2: inputs, 3: answers})])
    root = tables.table(8, text={0: program.name, 1: _words(preprocess), 2: f"lowbit {__version__}", 7: _PARSER}, offsets={3: graphs})
    tables.builder.Finish(root, file_identifier=_IDENTIFIER)
    return bytes(tables.builder.Output())


def attach(model: bytes, files: Mapping[str, str]) -> bytes:
    """Puts files into a zip archive behind a model, where readers of the format look for them.

    Args:
        model: A .tflite file, which the archive does not touch.
        files: Name -> content.
    """
    if not files:
        return model
    stream = io.BytesIO(model)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _LONGEST_AGO), content)
    return stream.getvalue()


def labels_file(labels: Sequence[str]) -> str:
    """One class a line, in the order of the outputs."""
    return "".join(" ".join(label.split()) + "\n" for label in labels)


def normalization(preprocess: Preprocess | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of raw values, as the format has them: (raw - mean) / std; per channel or one for all.

    Ours are of values already scaled: (raw * scale - mean) / std, which is (raw - mean / scale) / (std / scale).

    >>> normalization(Preprocess(kind="image", scale=0.5, mean=(1.0, 2.0), std=(0.25,)))
    ((2.0, 4.0), (0.5,))
    """
    if preprocess is None or preprocess.kind not in ("image", "array"):
        return None
    scale = 1.0 if isinstance(preprocess.scale, str) else preprocess.scale
    if scale == 1.0 and not preprocess.mean and not preprocess.std:
        return None
    return tuple(mean / scale for mean in preprocess.mean or (0.0,)), tuple(std / scale for std in preprocess.std or (1.0,))


def _words(preprocess: Preprocess | None) -> str:
    if preprocess is None:
        return "Quantized to 8 bits."
    return f"Quantized to 8 bits. What is done to samples before, in full:\n{preprocess.to_yaml()}"


def _input(tables: _Tables, program: Program, port: Port, preprocess: Preprocess | None) -> int:
    shape = program.tensors[port.tensor].shape
    is_image = preprocess is not None and preprocess.kind == "image" and len(shape) == 4
    content = _image(tables, shape, preprocess) if is_image and preprocess is not None else _feature(tables)
    norm = normalization(preprocess)
    offsets = {3: content}
    if norm is not None:
        offsets[4] = tables.vector(
            [tables.union(_NORMALIZATION, tables.table(2, offsets={0: tables.floats(norm[0]), 1: tables.floats(norm[1])}))]
        )
    if norm is not None and is_image:
        offsets[5] = _range(tables, *norm)
    return tables.table(7, text={0: port.name}, offsets=offsets)


def _image(tables: _Tables, shape: tuple[int, ...], preprocess: Preprocess) -> int:
    """The format knows RGB and grey; for BGR it says that it does not know, and the description does."""
    size = tables.table(2, numbers={0: ("Uint32", shape[2]), 1: ("Uint32", shape[1])})
    colours = _COLOURS.get(preprocess.channels, 0)
    return tables.union(_IMAGE, tables.table(2, numbers={0: ("Int8", colours)}, offsets={1: size}), slots=3)


def _feature(tables: _Tables) -> int:
    return tables.union(_FEATURE, tables.table(0), slots=3)


def _range(tables: _Tables, mean: tuple[float, ...], std: tuple[float, ...]) -> int:
    """Lowest and highest value that a pixel of 0 to 255 becomes: the table Stats."""
    low, high = ((value - np.asarray(mean)) / np.asarray(std) for value in (0.0, 255.0))
    return tables.table(2, offsets={0: tables.floats(high), 1: tables.floats(low)})


def _output(tables: _Tables, port: Port, labelled: bool) -> int:
    offsets = {3: _feature(tables)}
    if labelled:
        named = tables.table(
            4, text={0: LABELS, 1: "Names of the classes, in the order of the outputs."}, numbers={2: ("Int8", _AXIS_LABELS)}
        )
        offsets[6] = tables.vector([named])
    return tables.table(7, text={0: port.name}, offsets=offsets)


@dataclass(frozen=True)
class _Tables:
    """Writes flatbuffer tables by the numbers of their fields."""

    builder: flatbuffers.Builder

    def table(
        self,
        slots: int,
        *,
        text: Mapping[int, str] | None = None,
        numbers: Mapping[int, tuple[str, int]] | None = None,
        offsets: Mapping[int, int] | None = None,
    ) -> int:
        """A table of so many fields: field -> text, (flatbuffers' type, number), or what was written before."""
        written = {**(offsets or {}), **{slot: self.builder.CreateString(words) for slot, words in (text or {}).items()}}
        self.builder.StartObject(slots)
        for slot, offset in written.items():
            self.builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, (kind, number) in (numbers or {}).items():
            getattr(self.builder, f"Prepend{kind}Slot")(slot, number, 0)
        return int(self.builder.EndObject())

    def union(self, kind: int, value: int, slots: int = 2) -> int:
        """A table whose first two fields say what a value is, and hold it."""
        return self.table(slots, numbers={0: ("Uint8", kind)}, offsets={1: value})

    def vector(self, offsets: Any) -> int:
        """A vector of what was written before."""
        found = [*offsets]
        self.builder.StartVector(4, len(found), 4)
        for offset in reversed(found):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def floats(self, values: Sequence[float] | np.ndarray[Any, Any]) -> int:
        """A vector of float32."""
        return int(self.builder.CreateNumpyVector(np.asarray(values, np.float32)))
