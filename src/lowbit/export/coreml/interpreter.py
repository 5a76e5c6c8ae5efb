"""Runs a Core ML package without Apple's runtime: the specification is read back from disk and computed in numpy.

It says whether what was written is what was meant. It says nothing of how fast, and in which order of sums, a device computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.export.coreml.kernels import KERNELS
from lowbit.export.coreml.words import library
from lowbit.quiet import no_output
from lowbit.types import Array, Feeds


class Interpreter:
    """A package's program, one sample a call.

    Attributes:
        operations: How often each kind of operation occurs, constants left out.
    """

    def __init__(self, package: Path) -> None:
        """Reads it.

        Raises:
            RunError: it cannot be read, or has an operation that is not known here.
        """
        self._name = package.name
        program = load_program(package)
        self._function = program.functions["main"]
        self._constants: dict[str, Any] = {}
        self._steps: list[Any] = []
        self.operations: dict[str, int] = {}
        for operation in self._function.operations:
            kind = operation.op_type
            if kind == "const" or kind.startswith("constexpr_"):
                self._constants[operation.outputs[0].name] = _constant(operation)
                if kind == "const":
                    continue
            elif kind not in KERNELS:
                raise RunError(f"'{self._name}' has the operation '{kind}', which is not interpreted here.")
            else:
                self._steps.append(operation)
            self.operations[kind] = self.operations.get(kind, 0) + 1

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers one sample.

        Args:
            feeds: Input name -> [1, ...].

        Raises:
            RunError: an input is missing or of another shape, or an operation failed.
        """
        known: dict[str, Any] = dict(self._constants)
        for name, value in self._function.inputs.items():
            known[name] = self._fed(name, value, feeds)
        for operation in self._steps:
            try:
                found = KERNELS[operation.op_type](self._given(operation, known))
            except (ValueError, TypeError, IndexError, KeyError) as error:
                raise RunError(f"'{operation.op_type}' of '{self._name}' failed: {error}") from error
            values = found if isinstance(found, list) else [found]
            known.update({output.name: value for output, value in zip(operation.outputs, values, strict=True)})
        return {value.name: np.asarray(known[value.name]) for value in self._function.outputs}

    def _fed(self, name: str, value: Any, feeds: Feeds) -> Array:
        if name not in feeds:
            raise RunError(f"The input '{name}' is missing; it was fed {', '.join(feeds) or 'nothing'}.")
        if feeds[name].shape != tuple(value.shape):
            raise RunError(f"The input '{name}' has the shape {list(value.shape)}; it was fed {list(feeds[name].shape)}.")
        return feeds[name].astype(np.float32 if feeds[name].dtype.kind == "f" else np.int32)

    def _given(self, operation: Any, known: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _value(value, known) for name, value in operation.inputs.items() if value is not None}


def load_program(package: Path) -> Any:
    """The program of a saved package, as coremltools reads it back.

    Raises:
        RunError: it cannot be read.
    """
    try:
        coremltools = library()
        with no_output():
            from coremltools.converters.mil.frontend.milproto.load import load

            model = coremltools.models.MLModel(str(package), skip_model_load=True)
            return load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    except Exception as error:  # coremltools, protobuf and the weights' reader raise whatever they like
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"'{package.name}' cannot be read back: {said}") from error


def _value(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_value(each, known) for each in value]
    return known.get(value.name, value.val)


def _constant(operation: Any) -> Any:
    if operation.op_type == "const":
        return operation.outputs[0].val
    return operation.materialized_val_inference()
