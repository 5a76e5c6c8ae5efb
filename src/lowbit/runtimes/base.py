"""What every runtime promises: open an artifact, run it, describe it. One file per runtime fulfils it.

The suite in tests/conformance/test_runtimes.py is the other half of this contract: a runtime
that passes it can be searched, measured and served like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from lowbit.errors import RunError
from lowbit.runtimes.hardware import Hardware
from lowbit.types import Array, Feeds, TensorInfo, Tuning

Format = Literal["onnx", "pt2"]
"""What an artifact is: an ONNX file, or a program that torch.export wrote. Also the ending of its name."""

DEFAULT = Tuning()
"""All options at the library's defaults, except that the precision is pinned to f32."""


@runtime_checkable
class Session(Protocol):
    """A loaded artifact, ready to run. Safe to call from several threads at once.

    Attributes:
        inputs: What must be fed.
        outputs: What comes back.
        precision: Arithmetic really used for what is floating point ("f32", "bf16", "f16").
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    precision: str

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Runs one batch.

        Args:
            feeds: Input name -> array; exactly the session's inputs, in their dtypes.

        Returns:
            Output name -> array that the caller owns.

        Raises:
            RunError: An input is missing, unknown, or of the wrong dtype or shape; or the run failed.
        """
        ...

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        """Checks the feeds once and returns the bare call, for measuring. Each call has its own state.

        Raises:
            RunError: As `run`.
        """
        ...

    def close(self) -> None:
        """Frees the artifact; a later `run` raises RunError. Closing twice is fine."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """Something that runs artifacts on this hardware: ONNX files, unless it has an attribute `opens: Format` that says otherwise."""

    name: str

    def version(self) -> str | None:
        """The installed version, None where it is not installed. Imports nothing heavy."""
        ...

    def describe(self) -> dict[str, str]:
        """Facts for `lowbit doctor`: name, version, device, precisions. Imports the library."""
        ...

    def tunings(self, hardware: Hardware) -> tuple[Tuning, ...]:
        """Tunings worth trying here, the default first; those with streams > 1 are for throughput."""
        ...

    def open(self, path: Path, tuning: Tuning = DEFAULT, batch: int | None = None) -> Session:
        """Loads an artifact.

        Args:
            path: The file.
            tuning: Threads, streams, precision, fixed shape.
            batch: Batch size to compile for; needed where `tuning.fixed_shape`.

        Raises:
            RunError: The file is missing or of another format, has an operator this runtime lacks, or the
                tuning cannot be had here.
        """
        ...


@dataclass(frozen=True)
class Kernel:
    """One step of what a runtime made of an artifact.

    Attributes:
        name: The runtime's own name.
        kind: The runtime's own word for what it does, e.g. "QLinearConv", "Reorder".
        origins: Names of the artifact's nodes or tensors that it computes; names of the runtime's own making among them.
        seconds: Per call.
        elements: Of its first output; 0 where that is not known.
    """

    name: str
    kind: str
    origins: tuple[str, ...]
    seconds: float
    elements: int


@runtime_checkable
class Profiler(Protocol):
    """A runtime that can also tell what each step of a run takes. Not every runtime can."""

    def profile(
        self, path: Path, feeds: Feeds, *, tuning: Tuning = DEFAULT, batch: int | None = None, repeats: int = 20
    ) -> tuple[Kernel, ...]:
        """Runs an artifact with the runtime's own profiling on.

        Args:
            path: The ONNX file.
            feeds: One batch.
            tuning: As for `open`; one stream.
            batch: As for `open`.
            repeats: Calls that count; some more warm it up.

        Returns:
            The kernels of a call, in the order in which they ran; what was never run is left out.

        Raises:
            RunError: As `open` and `run`.
        """
        ...


def opens(runtime: Runtime) -> Format:
    """The format of the artifacts that a runtime opens."""
    found: Format = getattr(runtime, "opens", "onnx")
    return found


def check_feeds(inputs: Sequence[TensorInfo], feeds: Feeds) -> None:
    """Compares feeds with what a session declares, so that every runtime refuses the same in the same words.

    Raises:
        RunError: Naming the first input that is missing, unknown, or of the wrong dtype or shape.
    """
    declared = {info.name: info for info in inputs}
    names = ", ".join(declared)
    for name in feeds:
        if name not in declared:
            raise RunError(f"The model has no input '{name}'. Its inputs: {names}.", "Name the arrays as the model names its inputs.")
    for info in inputs:
        if info.name not in feeds:
            raise RunError(f"Input '{info.name}' is missing. The model's inputs: {names}.", f"Feed {_wanted(info)}.")
        _check_array(info, feeds[info.name])


def _check_array(info: TensorInfo, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise RunError(f"Input '{info.name}' is a {type(array).__name__}, not a numpy array.", f"Feed {_wanted(info)}.")
    if array.dtype.name != info.dtype:
        raise RunError(f"Input '{info.name}' is {array.dtype.name}; the model wants {info.dtype}.", f"Feed {_wanted(info)}.")
    fits = len(array.shape) == len(info.shape) and all(
        not isinstance(want, int) or want == got for want, got in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        raise RunError(f"Input '{info.name}' has shape {list(array.shape)}; the model wants {_dims(info)}.", f"Feed {_wanted(info)}.")


def _dims(info: TensorInfo) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in info.shape) + "]"


def _wanted(info: TensorInfo) -> str:
    return f"{info.dtype} {_dims(info)}"


def need_file(path: Path) -> None:
    """Refuses a path that is no file before a library gets to print about it."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise RunError(f"'{path.name}' {found}; a model file is needed.", "Check the path.")


def need_batch(tuning: Tuning, batch: int | None) -> int | None:
    """The batch size to compile for, None for a dynamic one."""
    if not tuning.fixed_shape:
        return None
    if batch is None or batch < 1:
        raise RunError(f"A fixed shape needs the batch size, 1 or more; got {batch}.", "Give a batch size, or leave the shape dynamic.")
    return batch


def plain(error: BaseException, path: Path) -> str:
    """A library's message on one line, without absolute paths, where it was thrown, or closing stops."""
    text = str(error).replace(str(path), path.name).replace(str(path.parent) + "/", "")
    lines = (line.strip() for line in text.splitlines())
    kept = (line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API failed")))
    return " ".join(kept).rstrip(". ") or type(error).__name__
