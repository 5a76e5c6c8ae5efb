"""A .tflite file on the kernels that are installed here: LiteRT's three sets on this CPU, and TensorFlow Lite Micro's.

The sets do not agree with each other to the last step, so each is a way of its own. The program's batch is 1: samples go through one
by one.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from lowbit.errors import RunError, unknown
from lowbit.export.litert.writer import IDENTIFIER
from lowbit.export.program.program import Port, Program
from lowbit.export.program.reference_elements import levels
from lowbit.plugins import installed_version
from lowbit.quant.affine import dequantize, quantize
from lowbit.runtimes.base import check_feeds
from lowbit.types import Array, Feeds, TensorInfo

XNNPACK, BUILT_IN, REFERENCE, MICRO = "xnnpack", "built-in", "reference", "tflite-micro"
RESOLVERS = {XNNPACK: "BUILTIN", BUILT_IN: "BUILTIN_WITHOUT_DEFAULT_DELEGATES", REFERENCE: "BUILTIN_REF"}
_ARENA_BYTES = 64 << 20
"""For TensorFlow Lite Micro on this machine; what it used of it is measured."""


def versions() -> dict[str, str]:
    """What is installed: distribution -> version."""
    found = {name: installed_version(module, name) for name, module in (("ai-edge-litert", "ai_edge_litert"), (MICRO, "tflite_micro"))}
    return {name: number for name, number in found.items() if number is not None}


def kernel_sets() -> tuple[str, ...]:
    """Names of the kernel sets that can be had here, the one that users get first."""
    there = versions()
    return (*(RESOLVERS if "ai-edge-litert" in there else ()), *((MICRO,) if MICRO in there else ()))


class Engine(Protocol):
    """One loaded file: arrays in the program's shapes go in and come out."""

    def set(self, number: int, value: Array) -> None: ...

    def invoke(self) -> object: ...

    def get(self, number: int) -> Array: ...


class _LiteRt:
    def __init__(self, content: bytes, kernels: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = getattr(OpResolverType, RESOLVERS[kernels])
        self._interpreter: Any = Interpreter(model_content=content, experimental_op_resolver_type=resolver, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._inputs = [detail["index"] for detail in self._interpreter.get_input_details()]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]
        self.invoke: Callable[[], object] = self._interpreter.invoke

    def set(self, number: int, value: Array) -> None:
        self._interpreter.set_tensor(self._inputs[number], value)

    def get(self, number: int) -> Array:
        found: Array = self._interpreter.get_tensor(self._outputs[number])
        return found


class _Micro:
    def __init__(self, content: bytes) -> None:
        from tflite_micro import runtime

        self._interpreter: Any = runtime.Interpreter.from_bytes(content, arena_size=_ARENA_BYTES)
        self.invoke: Callable[[], object] = self._interpreter.invoke

    def set(self, number: int, value: Array) -> None:
        self._interpreter.set_input(value, number)

    def get(self, number: int) -> Array:
        found: Array = self._interpreter.get_output(number)
        return found

    def allocations(self) -> str:
        """What it says of its memory, after a call."""
        with _stderr() as said:
            self._interpreter.print_allocations()
        return said[0]


def bare_call(engine: Engine, asked: Sequence[Sequence[Array]], outputs: int) -> Callable[[], object]:
    """What is measured: the arrays of each question, in the file's own layout, go in, and all answers out; the last ones are returned."""

    def call() -> object:
        answers: list[Array] = []
        for values in asked:
            for number, value in enumerate(values):
                engine.set(number, value)
            engine.invoke()
            answers = [engine.get(number) for number in range(outputs)]
        return answers

    return call


class LiteRtSession:
    """A .tflite file on one set of kernels. It is fed and answers like the model that the program came from.

    Attributes:
        inputs: As the source model is fed; the first axis is free.
        outputs: As it answers.
        precision: Of what is real at both ends.
        kernels: Their name.
    """

    precision = "f32"

    def __init__(self, content: bytes, program: Program, kernels: str, *, threads: int = 1) -> None:
        """Loads a file.

        Args:
            content: Of the .tflite file.
            program: That it was written from: names, layouts and grids of what goes in and comes out.
            kernels: One of `kernel_sets()`.
            threads: Of LiteRT's; TensorFlow Lite Micro has one.

        Raises:
            RunError: it does not load, or has an operator that these kernels lack.
            UsageError: no such kernels here.
        """
        self.kernels = kernels
        self.inputs, self.outputs = (
            tuple(TensorInfo(port.name, (None, *port.shape[1:]), "float32") for port in ports)
            for ports in (program.inputs, program.outputs)
        )
        self._program = program
        self._engine: Engine | None = load(content, kernels, threads)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers in the source model's names, layout and dtype: see `TargetSession.run`."""
        return {port.name: self._as_source(values, port, real=True) for port, values in self._rows(feeds)}

    def integers(self, feeds: Feeds) -> dict[str, Array]:
        """Levels of the outputs' grids, int8. A file that answers in real numbers gives them by the last step's own formula, backwards:
        it holds levels times scale, which rounds back to the very same levels."""
        return {port.name: self._as_source(values, port, real=False) for port, values in self._rows(feeds)}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """The bare calls for measuring, one a sample: its arrays, already in the file's own layout, go in, and the answers out."""
        engine = self._open(feeds)
        count = len(next(iter(feeds.values())))
        asked = [[self._fed(port, feeds, row) for port in self._program.inputs] for row in range(count)]
        return bare_call(engine, asked, len(self._program.outputs))

    def close(self) -> None:
        """Frees the interpreter; a later call raises RunError."""
        self._engine = None

    def allocations(self) -> str:
        """TensorFlow Lite Micro's own report on its memory, after a call; empty for other kernels."""
        return self._engine.allocations() if isinstance(self._engine, _Micro) else ""

    def _open(self, feeds: Feeds) -> Engine:
        if self._engine is None:
            raise RunError("This session is closed.", "Open the artifact again.")
        check_feeds(self.inputs, feeds)
        return self._engine

    def _rows(self, feeds: Feeds) -> list[tuple[Port, Array]]:
        """What the file gives, sample by sample: each port with [N, ...] in the program's layout."""
        engine = self._open(feeds)
        count = len(next(iter(feeds.values())))
        kept: list[list[Array]] = [[] for _ in self._program.outputs]
        for row in range(count):
            for number, port in enumerate(self._program.inputs):
                engine.set(number, self._fed(port, feeds, row))
            invoke(engine, self.kernels)
            for number, rows in enumerate(kept):
                rows.append(np.array(engine.get(number)))
        return [(port, self._stacked(port, rows)) for port, rows in zip(self._program.outputs, kept, strict=True)]

    def _stacked(self, port: Port, rows: list[Array]) -> Array:
        tensor = self._program.tensors[port.tensor]
        return np.concatenate(rows) if rows else np.zeros((0, *tensor.shape[1:]), tensor.dtype)

    def _fed(self, port: Port, feeds: Feeds, row: int) -> Array:
        """A sample in the layout and dtype of the file's input."""
        tensor = self._program.tensors[port.tensor]
        value = feeds[port.name][row : row + 1]
        value = value if port.permutation is None else value.transpose(port.permutation)
        value = value if tensor.grid is None or tensor.dtype == "float32" else levels(value, tensor.grid)
        return np.ascontiguousarray(value.reshape(tensor.shape), dtype=tensor.dtype)

    def _as_source(self, values: Array, port: Port, *, real: bool) -> Array:
        """The source model's layout, in real numbers or in levels."""
        if real != (self._program.tensors[port.tensor].dtype == "float32"):
            values = dequantize(values, self._program.output_grid(port)) if real else quantize(values, self._program.output_grid(port))
        values = values if port.permutation is None else values.transpose(np.argsort(port.permutation))
        return np.ascontiguousarray(values.reshape(-1, *port.shape[1:]))


def arena(content: bytes, program: Program) -> dict[str, int]:
    """Memory that TensorFlow Lite Micro takes for a file, as it records it itself on this machine (64-bit pointers).

    Returns:
        "head" (tensors that are computed: they share and reuse it), "tail" (its own records) and "total", in bytes; nothing where it is
        not installed, cannot run the file, or does not say.
    """
    if MICRO not in kernel_sets():
        return {}
    try:
        session = LiteRtSession(content, program, MICRO)
        session.prepare({port.name: np.zeros(port.shape, np.float32) for port in program.inputs})()
    except RunError:
        return {}
    found = dict(re.findall(r"Arena allocation (head|tail|total) (\d+) bytes", session.allocations()))
    return {name: int(value) for name, value in found.items()}


def check_file(content: bytes, kernels: str) -> None:
    """Refuses what is no .tflite file: TensorFlow Lite Micro does not look, and reads wherever the bytes lead.

    Raises:
        RunError: it is none.
    """
    if content[4:8] != IDENTIFIER:
        raise RunError(f"This is no .tflite file, so it does not load on {kernels}.", "Write it again with `lowbit export`.")


def load(content: bytes, kernels: str, threads: int) -> Engine:
    """An interpreter; what a library prints beside its exception is part of the message.

    Raises:
        RunError: the file does not load.
        UsageError: no such kernels here.
    """
    if kernels not in kernel_sets():
        raise unknown("kernel set", kernels, kernel_sets())
    check_file(content, kernels)
    failure: Exception | None = None
    with _stderr() as said:
        try:
            return _Micro(content) if kernels == MICRO else _LiteRt(content, kernels, threads)
        except (RuntimeError, ValueError) as error:
            failure = error
    printed = [line for line in said[0].splitlines() if line.strip()]
    raise RunError(f"The file does not load on {kernels}: {' '.join([str(failure), *printed[-3:]])}") from failure


def invoke(engine: Engine, kernels: str) -> None:
    """Runs what was set.

    Raises:
        RunError: it fails.
    """
    try:
        engine.invoke()
    except (RuntimeError, ValueError) as error:
        raise RunError(f"The file fails on {kernels}: {error}") from error


@contextmanager
def _stderr() -> Iterator[list[str]]:
    """Catches what a library writes to the process's own standard error, past Python; the text is there after the block."""
    said = [""]
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said[0] = file.read().decode(errors="replace")
