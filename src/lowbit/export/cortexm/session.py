"""Generated C code that can be asked: compiled once, fed by files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowbit.errors import DataError, RunError
from lowbit.export.cortexm import qemu
from lowbit.export.program.program import Kind, Port, Program, Tensor
from lowbit.export.program.reference import from_source
from lowbit.export.program.reference_elements import levels, real
from lowbit.types import Array, Feeds


class CSession:
    """A compiled example in QEMU or on this machine.

    Args:
        folder: As exported.
        program: What it was made from.
        kernels: A kernel set of `qemu`.

    Attributes:
        last: Facts of the last run: stack, and instructions where they were counted.
    """

    def __init__(self, folder: Path, program: Program, kernels: str) -> None:
        self._program, self._kernels = program, kernels
        self._scratch = tempfile.TemporaryDirectory(prefix="lowbit-c-")
        self._path = Path(self._scratch.name)
        self.last: qemu.Run | None = None
        try:
            self._built = qemu.build(folder.resolve(), kernels, self._path)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `TargetSession.run`."""
        return {
            port.name: _to_source(_real(values, self._program.tensors[port.tensor]), port) for port, values in self._answers(feeds).items()
        }

    def integers(self, feeds: Feeds) -> dict[str, Array] | None:
        """See `TargetSession.integers`; where the code answers in float, each number's level on the grid it came from."""
        answers = {}
        for port, values in self._answers(feeds).items():
            if values.dtype != np.int8:
                made = next(op for op in self._program.operations if port.tensor in op.outputs)
                if made.kind is not Kind.DEQUANTIZE:
                    return None
                grid = self._program.tensors[made.inputs[0]].grid
                assert grid is not None, f"'{made.inputs[0]}' has no grid"
                values = levels(values, grid)
            answers[port.name] = _to_source(values, port)
        return answers

    def count(self, feeds: Feeds) -> qemu.Run:
        """Runs the samples with instructions counted.

        Raises:
            RunError: it failed.
        """
        return self._run(self._bytes(feeds), count=True)

    def close(self) -> None:
        """Removes what was compiled."""
        self._scratch.cleanup()

    def _answers(self, feeds: Feeds) -> dict[Port, Array]:
        """Output ports with [N, *shape] of their tensor."""
        given = self._bytes(feeds)
        self.last = self._run(given)
        tensors = [self._program.tensors[port.tensor] for port in self._program.outputs]
        record = np.dtype([(f"f{i}", np.dtype(t.dtype).newbyteorder("<"), t.shape) for i, t in enumerate(tensors)])
        rows = np.frombuffer(self.last.answers, record)
        return {port: rows[f"f{i}"].astype(tensors[i].dtype) for i, port in enumerate(self._program.outputs)}

    def _run(self, given: bytes, *, count: bool = False) -> qemu.Run:
        number = len(given) // _sample_bytes(self._program)
        done = qemu.run(self._built, self._kernels, given, number, self._path, count=count)
        if done.samples != number:
            raise RunError(f"{self._kernels} answered {done.samples} of {number} samples.")
        return done

    def _bytes(self, feeds: Feeds) -> bytes:
        """Samples as the example reads them: all inputs of the first, all of the second, and so on."""
        columns = [_rows(port, feeds, self._program.tensors[port.tensor]) for port in self._program.inputs]
        if len({len(column) for column in columns}) != 1:
            raise DataError(f"Inputs have different numbers of samples: {[len(column) for column in columns]}.")
        return np.concatenate(columns, axis=1).tobytes()


def _sample_bytes(program: Program) -> int:
    return sum(program.tensors[port.tensor].size_bytes for port in program.inputs)


def _rows(port: Port, feeds: Mapping[str, Array], tensor: Tensor) -> Array:
    """An input as bytes, uint8 [N, bytes]."""
    values = from_source(port, feeds, tensor)
    flat = np.ascontiguousarray(values.astype(np.dtype(tensor.dtype).newbyteorder("<"), copy=False)).reshape(len(values), -1)
    return flat.view(np.uint8)


def _real(values: Array, tensor: Tensor) -> Array:
    return values if tensor.grid is None or tensor.dtype == "float32" else real(values, tensor.grid)


def _to_source(values: Array, port: Port) -> Array:
    """[N, 1, ...] in the program's layout to [N, ...] in the source model's."""
    rows = values.reshape(-1, *values.shape[2:])
    moved = rows if port.permutation is None else rows.transpose(np.argsort(port.permutation))
    return np.ascontiguousarray(moved.reshape(-1, *port.shape[1:]))
