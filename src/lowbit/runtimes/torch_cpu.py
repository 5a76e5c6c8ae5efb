"""PyTorch on the CPU: exported programs (.pt2), compiled by inductor where there is a C++ compiler, node by node where there is none.

It is used where it is asked for by name: compiling takes 10 to 50 seconds for every shape and number of threads. docs/decisions/0010 has
the numbers.

The number of threads is the process's, not the session's: the last session that was opened decides it.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.plugins import installed_version
from lowbit.quiet import no_output
from lowbit.runtimes.base import DEFAULT, Format, check_feeds, need_batch, need_file, plain
from lowbit.runtimes.hardware import Hardware
from lowbit.runtimes.programs import read_program, tensor_infos
from lowbit.types import Array, Feeds, TensorInfo, Tuning


class TorchCpu:
    """See `lowbit.runtimes.base.Runtime`; for .pt2 files instead of ONNX ones."""

    name = "torch"
    opens: Format = "pt2"

    def __init__(self, *, compiled: bool = True) -> None:
        """Args:
        compiled: Compile where there is a compiler.
        """
        self._compiled = compiled

    def version(self) -> str | None:
        return installed_version("torch")

    def describe(self) -> dict[str, str]:
        if self.version() is None:
            return {"name": self.name, "version": "not installed"}
        import torch

        how = "inductor" if self._compiles() else "none: without a C++ compiler programs run node by node"
        return {"name": self.name, "version": torch.__version__, "device": "CPU", "precisions": "f32", "compiler": how}

    def tunings(self, hardware: Hardware) -> tuple[Tuning, ...]:
        """Dynamic and fixed shape, and one thread. Streams would share one pool of threads: none are offered."""
        found = [Tuning(), Tuning(fixed_shape=True)]
        return tuple(found if hardware.cores == 1 else [*found, Tuning(threads=1, fixed_shape=True)])

    def open(self, path: Path, tuning: Tuning = DEFAULT, batch: int | None = None) -> TorchSession:
        """See `lowbit.runtimes.base.Runtime`. Pickled objects in the file are refused.

        Raises:
            RunError: The file is missing or no exported program, it is quantized and torchao is missing, it cannot be compiled, or
                the tuning cannot be had here.
        """
        if tuning.precision != "f32":
            raise RunError(f"torch has no {tuning.precision} arithmetic here; it has f32.", "Use precision f32 there.")
        need_file(path)
        size = need_batch(tuning, batch)
        import torch

        program = read_program(path)
        torch.set_num_threads(tuning.threads or len(os.sched_getaffinity(0)))
        inputs, outputs = tensor_infos(program, path)
        call: Callable[..., Any] = program.module()
        if self._compiles():
            call = _compiled(call, dynamic=size is None)
        session = TorchSession(call, path, _fixed(inputs, size), _fixed(outputs, size, inputs))
        with no_output():
            session.warm_up(program.example_inputs)
        return session

    def _compiles(self) -> bool:
        return self._compiled and compiler() is not None


class TorchSession:
    """See `lowbit.runtimes.base.Session`. Compiled code has no state: it is safe to call from several threads."""

    precision = "f32"

    def __init__(self, call: Callable[..., Any], path: Path, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> None:
        self._call: Callable[..., Any] | None = call
        self._path = path
        self.inputs, self.outputs = inputs, outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._open()
        check_feeds(self.inputs, feeds)
        values = self._answer(_tensors(self.inputs, feeds))
        # A copy: an output may be an input, a constant or another output.
        return {info.name: value.numpy().copy() for info, value in zip(self.outputs, values, strict=True)}

    def prepare(self, feeds: Feeds) -> Callable[[], object]:
        import torch

        self.run(feeds)
        call, own = self._open(), _tensors(self.inputs, feeds)

        def measured() -> object:
            with torch.no_grad():
                return call(*own)

        return measured

    def warm_up(self, example: Any) -> None:
        """Compiles, with the samples that the program was exported with (as many as its batch is to have), where it has any."""
        values = list(example[0]) if example and not example[1] else []
        if values and all(value.ndim for value in values):
            fed = [value.numpy() for value in values]
            sizes = [info.shape[0] for info in self.inputs]
            rows = [np.resize(a, (n, *a.shape[1:])) if isinstance(n, int) else a for a, n in zip(fed, sizes, strict=True)]
            self._answer(_tensors(self.inputs, {info.name: array for info, array in zip(self.inputs, rows, strict=True)}))

    def close(self) -> None:
        self._call = None

    def _answer(self, values: Sequence[Any]) -> tuple[Any, ...]:
        import torch
        from torch.utils import _pytree as pytree

        call = self._open()
        try:
            with torch.no_grad():
                return tuple(pytree.tree_leaves(call(*values)))
        except Exception as error:  # the compiler's, the operators' and the guards' share no base
            raise RunError(f"torch failed on '{self._path.name}': {plain(error, self._path)[:300]}.") from error

    def _open(self) -> Callable[..., Any]:
        if self._call is None:
            raise RunError(f"The session of '{self._path.name}' is closed.", "Open it again.")
        return self._call


def compiler() -> str | None:
    """The C++ compiler that inductor would call, None where there is none. Nothing is imported."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX", usual))


def _compiled(call: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    """Compiles on the first call, with weights as constants: only then are they packed for integer kernels."""
    import torch
    import torch._inductor.config as settings

    settings.freezing = True  # for the whole process: the tracer, which runs at the first call, does not see compile's own options
    compiled: Callable[..., Any] = torch.compile(call, dynamic=dynamic)
    return compiled


def _fixed(infos: tuple[TensorInfo, ...], size: int | None, inputs: tuple[TensorInfo, ...] | None = None) -> tuple[TensorInfo, ...]:
    """With the batch axis (the first input's first one, where it is open) at its size."""
    first = (inputs or infos)[0].shape
    if size is None or not first or isinstance(first[0], int):
        return infos
    return tuple(replace(info, shape=tuple(size if dim == first[0] else dim for dim in info.shape)) for info in infos)


def _tensors(inputs: Sequence[TensorInfo], feeds: Feeds) -> list[Any]:
    """In the program's order; in one piece, because compiled code is for one order in memory."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arrays that may not be written to: nobody does
        return [torch.from_numpy(np.ascontiguousarray(feeds[info.name])) for info in inputs]
