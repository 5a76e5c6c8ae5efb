"""ExecuTorch: the graph and its table as a PyTorch program, lowered to XNNPACK in ExecuTorch's own environment.

There is no official way from ONNX into ExecuTorch. lowbit has a torch twin of its graphs; it is exported with the table's scales in place,
so that nothing is calibrated again.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, Wish
from lowbit.export.fixed_batch import with_fixed_batch
from lowbit.export.named_session import NamedSession, fixed_size, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.qdq_again import format_of
from lowbit.export.worker import Worker, python_of
from lowbit.graph import ir_files
from lowbit.graph.parameterize import parameterize
from lowbit.graph.place import place
from lowbit.graph.profiles import Profile
from lowbit.graph.qdq import values_of
from lowbit.plugins import installed_version
from lowbit.quant.affine import Affine, span
from lowbit.types import Array

KERNELS = "xnnpack"
XNNPACK = Profile(
    "xnnpack", products=frozenset({"Conv", "Gemm", "MatMul"}), unary=frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
)
"""Its kernels hand out integers alone: a product's result is always rounded."""

_MODULE = "executorch/exir"
_MISSING = "python -m venv .venv-executorch && .venv-executorch/bin/pip install torch==2.13.0 executorch==1.5.1"
_SECONDS = 1200


@dataclass(frozen=True)
class Written:
    """What `open` needs beside the file: names in its own order, grids of rounded outputs, and how many samples it takes a call."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    grids: Mapping[str, Affine]
    size: int


class ExecuTorch:
    """See `lowbit.export.base.Target`."""

    name = "executorch"
    title = "ExecuTorch"
    wishes: tuple[Wish, ...] = ()
    extra: str | None = "torch"

    def version(self) -> str | None:
        """Of ExecuTorch in its own environment; None without it, or without torch in this one."""
        python = python_of("executorch", _MODULE)
        if python is None or installed_version("torch") is None:
            return None
        found = next(python.parents[1].glob("lib/python3*/site-packages/executorch-*.dist-info"), None)
        return found.name.removesuffix(".dist-info").split("-")[1] if found is not None else "unknown"

    def abilities(self) -> Abilities:
        """It needs a torch of one version, so it has an environment of its own."""
        words = "run by ExecuTorch with XNNPACK on this machine's processor; not run on a phone"
        if self.version() is None:
            return Abilities(False, "run", (_MISSING,), words)
        return Abilities(True, "run", words=words)

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:  # noqa: ARG002  # it has none
        """Writes NAME.pte and what helps people to feed it."""
        if self.version() is None:
            raise UsageError("ExecuTorch is not installed, or torch is not.", _MISSING)
        main = folder / f"{source.name}.pte"
        with tempfile.TemporaryDirectory(dir=folder) as place:
            program, activations = _program(source, Path(place))
            told = _lower(program, main)
        left = told["left"]
        facts: dict[str, Setting] = {"executorch": self.version() or "", "delegates": int(told["delegates"]), "operators_left": len(left)}
        notes = (f"Outside XNNPACK, in ExecuTorch's portable kernels: {', '.join(left)}.",) if left else ()
        grids = {info.name: activations[info.name] for info in source.outputs if info.name in activations}
        state = Written(
            tuple(info.name for info in source.inputs), tuple(info.name for info in source.outputs), grids, fixed_size(source.inputs) or 1
        )
        return Artifact(main, (main, *write_beside(source, folder)), facts, notes, state)

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """How much of the program XNNPACK takes."""
        delegates = int(artifact.facts.get("delegates", 0))
        if delegates == 0:
            return [Finding("delegation", "warning", "XNNPACK takes no part of the program: portable kernels are slow.")]
        if delegates > 1:
            text = f"The program is cut into {delegates} parts for XNNPACK; between them tensors are handed over."
            return [Finding("delegation", "note", text)]
        return []

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002  # the same for every file
        """ExecuTorch's runtime with XNNPACK, where it has an environment."""
        return (KERNELS,) if python_of("executorch", _MODULE) is not None else ()

    def open(self, artifact: Artifact, kernels: str) -> NamedSession:
        """Loads the .pte file in ExecuTorch's environment."""
        python = python_of("executorch", _MODULE)
        if kernels != KERNELS or python is None:
            raise RunError(f"ExecuTorch has no kernels '{kernels}' here.", _MISSING if python is None else f"It has '{KERNELS}'.")
        state = artifact.state
        assert isinstance(state, Written), "the artifact is not of this target"
        names = json.dumps({"inputs": state.inputs, "outputs": state.outputs, "size": state.size})
        worker = Worker([python, "-I", Path(__file__).with_name("answer.py"), "run", artifact.main, names], "ExecuTorch")
        return NamedSession(worker.ask, worker.close, state.grids, size=state.size if state.size > 1 else None)


def _program(source: Neutral, folder: Path) -> tuple[Path, Mapping[str, Affine]]:
    """The graph with its roundings as PyTorch's exported program, for one sample; and the roundings."""
    from lowbit.train.rounded_program import write_rounded_program

    model = with_fixed_batch(source, ExecuTorch.title)
    ranges = {**source.ranges, **{name: span(grid) for name, grid in source.activations.items()}}
    placement = place(model.graph, XNNPACK, lambda group: format_of(source, model.graph, group), ranges)
    table = parameterize(placement, ranges.__getitem__, values_of(model), source.weights)
    activations = {entry.tensor: table[entry.key] for entry in placement.activations}
    weights = {entry.tensor: table[entry.key] for entry in placement.weights}
    ir_files.write(model, folder / "model.onnx")
    feeds = {str(value.name): _zeros(value) for value in model.graph.inputs}
    return write_rounded_program(folder / "model.onnx", folder / "model.pt2", activations, weights, feeds), activations


def _zeros(value: object) -> Array:
    shape, dtype = value.shape, value.dtype  # type: ignore[attr-defined]
    return np.zeros(tuple(int(extent) for extent in shape.numpy()), dtype.numpy() if dtype is not None else np.float32)


def _lower(program: Path, out: Path) -> dict[str, Any]:
    """Lowers a program where ExecuTorch is, and says what XNNPACK takes of it."""
    python = python_of("executorch", _MODULE)
    assert python is not None, "asked before"
    script = Path(__file__).with_name("answer.py")
    try:
        done = subprocess.run([python, "-I", script, "write", program, out], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"ExecuTorch has not lowered the model within {_SECONDS // 60} minutes.", "Export for another target.") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"outputs"')]
    if done.returncode or not lines:
        said = ([line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"])[-1]
        raise ModelError(f"ExecuTorch cannot lower the model: {said.strip()}", "Export another candidate, or for ort-mobile.")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
