"""A file that was converted elsewhere, on LiteRT's kernels: fed and answering like the model it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.export.litert import outline
from lowbit.export.litert.recalibrated.ends import End, Ends
from lowbit.export.litert.sessions import Engine, bare_call, invoke, load
from lowbit.export.named_session import calls_of, in_calls
from lowbit.export.program.reference_elements import levels
from lowbit.quant.affine import Affine, dequantize
from lowbit.runtimes.base import check_feeds
from lowbit.types import Array, Feeds, TensorInfo

_NARROWER = {"int64": np.int32, "uint64": np.int32, "float64": np.float32, "float16": np.float32}
"""The converter's own choice: what is wide in the source is not in the file."""


class RecalibratedSession:
    """See `lowbit.export.base.TargetSession`; and a session that a race can time.

    Attributes:
        inputs: As the source model is fed; the first axis is free, and so are axes that are filled up.
        outputs: As it answers.
        precision: Of what is real at both ends.
        kernels: Their name.
    """

    precision = "f32"

    def __init__(self, content: bytes, ends: Ends, kernels: str, schema: Any, *, threads: int = 1) -> None:
        """Loads a file.

        Args:
            content: Of the .tflite file.
            ends: That are kept in it.
            kernels: One of LiteRT's own.
            schema: The classes of the flatbuffer.
            threads: Of LiteRT's.

        Raises:
            RunError: it does not load, or has an operator that these kernels lack.
            UsageError: no such kernels here.
        """
        self.kernels = kernels
        self.inputs, self.outputs = (tuple(_info(end) for end in part) for part in (ends.inputs, ends.outputs))
        self._ends, self._size = ends, ends.inputs[0].shape[0]
        self._grids = _grids(content, schema)
        self._engine: Engine | None = load(content, kernels, threads)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers in the source model's names, layout and dtypes: see `TargetSession.run`."""
        engine = self._open(feeds)
        return in_calls(lambda part: self._call(engine, part, real=True), feeds, self._size)

    def integers(self, feeds: Feeds) -> dict[str, Array] | None:
        """Levels, where the file answers in levels; None where it answers in real numbers: its own grids are nobody's but its own."""
        engine = self._open(feeds)
        if any(grid is None for grid in self._grids[1]):
            return None
        return in_calls(lambda part: self._call(engine, part, real=False), feeds, self._size)

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """The bare calls for measuring: arrays, already in the file's own layout, go in, and the answers out."""
        engine = self._open(feeds)
        rows = calls_of(len(next(iter(feeds.values()))), self._size)
        ends = list(zip(self._ends.inputs, self._grids[0], strict=True))
        asked = [[_fed(end, grid, feeds[end.name][row]) for end, grid in ends] for row in rows]
        return bare_call(engine, asked, len(self._ends.outputs))

    def close(self) -> None:
        """Frees the interpreter; a later call raises RunError."""
        self._engine = None

    def _open(self, feeds: Feeds) -> Engine:
        if self._engine is None:
            raise RunError("This session is closed.", "Open the artifact again.")
        check_feeds(self.inputs, feeds)
        return self._engine

    def _call(self, engine: Engine, feeds: Feeds, *, real: bool) -> dict[str, Array]:
        """Answers as many samples as the file takes."""
        for number, (end, grid) in enumerate(zip(self._ends.inputs, self._grids[0], strict=True)):
            engine.set(number, _fed(end, grid, feeds[end.name]))
        invoke(engine, self.kernels)
        sizes = {size: feeds[end.name].shape[axis] for end in self._ends.inputs for axis, size in end.open.items()}
        found = {}
        for number, (end, grid) in enumerate(zip(self._ends.outputs, self._grids[1], strict=True)):
            values = _as_source(np.array(engine.get(number)), end, sizes)
            found[end.name] = (values if grid is None else dequantize(values, grid)).astype(end.dtype) if real else values
        return found


def _info(end: End) -> TensorInfo:
    free = {0, *end.open}
    return TensorInfo(end.name, tuple(None if axis in free else size for axis, size in enumerate(end.shape)), end.dtype)


def _fed(end: End, grid: Affine | None, value: Array) -> Array:
    """A sample in the file's size, layout and dtype.

    Raises:
        RunError: it is larger.
    """
    for axis in end.open:
        missing = end.shape[axis] - value.shape[axis]
        if missing < 0:
            raise RunError(
                f"The file takes {end.shape[axis]} along axis {axis} of '{end.name}', and a sample has {value.shape[axis]}.",
                f"Cut samples, or export with --set length={value.shape[axis]}.",
            )
        value = np.pad(value, [(0, missing if other == axis else 0) for other in range(value.ndim)])
    value = value if end.permutation is None else value.transpose(end.permutation)
    if grid is not None:
        return np.ascontiguousarray(levels(value, grid), np.int8)
    return np.ascontiguousarray(value, narrow(end.dtype))


def narrow(dtype: str) -> np.dtype[Any]:
    """What the converter makes of a type at the ends."""
    return np.dtype(_NARROWER.get(dtype, dtype))


def _as_source(values: Array, end: End, sizes: dict[str, int]) -> Array:
    """Answers in the source's layout, without what was filled up."""
    values = values if end.permutation is None else values.transpose(np.argsort(end.permutation))
    cut = tuple(slice(sizes.get(end.open.get(axis, ""))) for axis in range(values.ndim))
    return np.ascontiguousarray(values[cut])


def _grids(content: bytes, schema: Any) -> tuple[list[Affine | None], list[Affine | None]]:
    """Of a file's inputs and outputs, in its order; None where they are real numbers."""
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)

    def grid(number: int) -> Affine | None:
        tensor = graph.Tensors(number)
        return outline.grid(tensor.Quantization()) if tensor.Type() == schema.TensorType.INT8 else None

    return [grid(k) for k in graph.InputsAsNumpy().tolist()], [grid(k) for k in graph.OutputsAsNumpy().tolist()]
