"""What leaves: a candidate's file, and what is known of it that another server must be told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import candidate_of
from lowbit.errors import ModelError, RunError, UsageError
from lowbit.graph.load import external_files, load_model
from lowbit.types import Candidate, TensorInfo

PROBE_ROWS, ANY = 3, 2
"""Rows, and the number that stands for an axis of any size, when a model is tried."""


@dataclass(frozen=True)
class Leaving:
    """One model.

    Attributes:
        name: On the other server.
        candidate: With its measurements and its tuning.
        files: The .onnx file, then its external data.
        inputs: It takes.
        outputs: It gives.
        apart: Whether rows of different requests may share a run: they go in and come back along a first axis of any size.
    """

    name: str
    candidate: Candidate
    files: tuple[Path, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    apart: bool


def leaving(bundle: Bundle, name: str, *, candidate: str | None = None, full: bool = True) -> list[Leaving]:
    """What a bundle leaves with: one candidate, and the source model in its own precision as NAME_full.

    Args:
        bundle: Checked.
        name: Of the model.
        candidate: Its id; what ships if None.
        full: Whether the baseline comes along, where it is another one.

    Raises:
        UsageError: the name cannot be one, there is no such candidate, its artifact was pruned, or it is no ONNX file.
        ModelError: the file is damaged.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"'{name}' cannot be a model's name.", "Use letters, digits, '-', '_' and '.': --name NAME.")
    manifest = bundle.manifest
    first = candidate or manifest.decision.chosen
    found = [_one(bundle, name, first)]
    if full and first != manifest.baseline.id:
        found.append(_one(bundle, f"{name}_full", manifest.baseline.id))
    return found


def _one(bundle: Bundle, name: str, candidate: str) -> Leaving:
    artifact = bundle.artifact(candidate)
    if artifact.suffix != ".onnx":
        raise UsageError(f"'{candidate}' is a PyTorch program; other servers take ONNX files.", _instead(bundle))
    model = load_model(artifact)
    files = (artifact, *external_files(artifact))
    found = candidate_of(bundle.manifest.entry(candidate))
    return Leaving(name, found, files, model.inputs, model.outputs, _apart(bundle, candidate, model.inputs, model.outputs))


def _instead(bundle: Bundle) -> str:
    """A hint that names candidates which can leave, those within the budget first."""
    able = [entry for entry in bundle.manifest.candidates if entry.artifact and entry.artifact.endswith(".onnx")]
    able = [entry for entry in able if (bundle.folder / (entry.artifact or "")).is_file()]
    able.sort(key=lambda entry: entry.verdict not in ("ship", "provisional"))
    names = [entry.id for entry in able][:3] or [bundle.manifest.baseline.id]
    return f"Export another candidate: --candidate {names[0]}" + (f" (or {', '.join(names[1:])})." if names[1:] else ".")


def _apart(bundle: Bundle, candidate: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> bool:
    """By the names of the first axes where they say it, else by a run."""
    firsts = [info.shape[0] if info.shape else 0 for info in (*inputs, *outputs)]
    if any(isinstance(first, int) for first in firsts):
        return False
    if firsts[0] is not None and len(set(firsts)) == 1:
        return True
    shapes = {info.name: [PROBE_ROWS, *(dim if isinstance(dim, int) else ANY for dim in info.shape[1:])] for info in inputs}
    try:
        with bundle.session(candidate=candidate) as session:
            found = session.run({info.name: np.zeros(shapes[info.name], info.dtype) for info in inputs})
    except (RunError, ModelError, TypeError):  # axes of any size may have rules of their own, and dtypes may be none of numpy's
        return False
    return all(array.ndim > 0 and len(array) == PROBE_ROWS for array in found.values())
