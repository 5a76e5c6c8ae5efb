"""Core ML: an ML program with the table's integers, saved as .mlpackage. Apple's runtime is not on other systems: the saved
specification is read back and interpreted instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, Wish
from lowbit.export.coreml.build import build
from lowbit.export.coreml.interpreter import Interpreter, load_program
from lowbit.export.coreml.package import convert, palettized, save
from lowbit.export.named_session import NamedSession, fixed_size, write_beside
from lowbit.export.neutral import Neutral
from lowbit.plugins import installed_version, named_version
from lowbit.quant.affine import Affine

KERNELS = "interpreter"
WORDS = "spec reloaded and interpreted; not run on Apple hardware"
INT8, PALETTIZED = "int8", "4bit-palettized"
_PRODUCTS = ("conv", "conv_transpose", "linear", "matmul")


@dataclass(frozen=True)
class Written:
    """What `open` needs beside the package: names and grids of its ends, and how many samples it takes a call."""

    names: Mapping[str, str]
    grids: Mapping[str, Affine]
    size: int


class CoreMl:
    """See `lowbit.export.base.Target`."""

    name = "coreml"
    title = "Core ML"
    wishes = (
        Wish(
            "weights",
            INT8,
            "int8: weights and activations on the table's grids; 4bit-palettized: 16 values a weight tensor",
            (INT8, PALETTIZED),
        ),
        Wish("precision", "float32", "of what is floating point; the Neural Engine computes in float16 alone", ("float32", "float16")),
    )
    extra: str | None = "coreml"

    def version(self) -> str | None:
        """Of coremltools."""
        return named_version("coremltools")

    def abilities(self) -> Abilities:
        """coremltools writes packages everywhere and runs them on Apple's systems alone."""
        if self.version() is None:
            return Abilities(False, "interpreted", ("pip install 'lowbit[coreml]'",), WORDS)
        return Abilities(True, "interpreted", words=WORDS)

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes NAME.mlpackage and what helps people to feed it."""
        if self.version() is None:
            raise UsageError("Core ML packages are written by coremltools, which is not installed.", "pip install 'lowbit[coreml]'")
        kind, precision = str(settings["weights"]), str(settings["precision"])
        built = build(source, rounded=kind == INT8)
        model = convert(built, precision)
        if kind == PALETTIZED:
            model = _palettized(model)
        main = folder / f"{source.name}.mlpackage"
        words = f"{source.name}: {'int8 weights and activations' if kind == INT8 else '4-bit palettized weights'}, {precision} beside."
        save(model, source, main, words, dict(built.names))
        files = (main, *sorted(file for file in main.rglob("*") if file.is_file()), *write_beside(source, folder))
        facts: dict[str, Setting] = {
            "minimum": "iOS 17, macOS 14",
            "weights": kind,
            "precision": precision,
            "coremltools": installed_version("coremltools") or "",
        }
        grids = built.grids if kind == INT8 else {}
        notes = (f"{WORDS[0].upper()}{WORDS[1:]}.", *_notes(source, kind, built.wide))
        return Artifact(main, files, facts, notes, Written(built.names, grids, fixed_size(source.inputs) or 1))

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """What the saved program says of integers."""
        function = load_program(artifact.main).functions["main"]
        products = [operation for operation in function.operations if operation.op_type in _PRODUCTS]
        found = []
        if artifact.facts.get("weights") == INT8:
            floats = [operation.name for operation in products if not _is_rounded(operation)]
            if floats:
                text = (
                    f"{len(floats)} of {len(products)} products do not read int8 on both sides, e.g. {floats[0]}: they are floating point."
                )
                found.append(Finding("int8 operands", "warning" if len(floats) == len(products) else "note", text))
        if artifact.facts.get("precision") == "float32":
            text = "With float32 the Neural Engine is left out. --set precision=float16 lets it in, and rounds the scales to 11 bits."
            found.append(Finding("Neural Engine", "note", text))
        return found

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002  # the same for every package
        """Our own interpreter."""
        return (KERNELS,)

    def open(self, artifact: Artifact, kernels: str) -> NamedSession:
        """Reads the package back from disk."""
        if kernels != KERNELS:
            raise RunError(f"Core ML has no kernels '{kernels}' here; it has '{KERNELS}'.")
        state = artifact.state
        assert isinstance(state, Written), "the artifact is not of this target"
        interpreter = Interpreter(artifact.main)
        return NamedSession(interpreter.run, lambda: None, state.grids, state.names, state.size)


def _palettized(model: object) -> object:
    if installed_version("sklearn", "scikit-learn") is None:
        raise UsageError("weights=4bit-palettized needs scikit-learn, which is not installed.", "pip install scikit-learn")
    return palettized(model)


def _notes(source: Neutral, kind: str, wide: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if kind == PALETTIZED:
        notes.append("The 16 values a tensor are found anew from the candidate's weights; the table's scales are not used.")
    if wide:
        notes.append(f"{len(wide)} tensors have grids of more than 8 bits and stay in floating point.")
    if any(grid.block is not None for grid in source.weights.values()):
        notes.append("Weights in blocks are stored in floating point: iOS 17 has no blocks.")
    return tuple(notes)


def _is_rounded(operation: object) -> bool:
    """Whether a product's operands come from integers."""
    inputs = operation.inputs  # type: ignore[attr-defined]
    x, weight = inputs["x"], inputs.get("weight", inputs.get("y"))
    makers = [value.op.op_type if value is not None and value.op is not None else "" for value in (x, weight)]
    return makers[0] == "dequantize" and makers[1] in ("dequantize", "constexpr_affine_dequantize")
