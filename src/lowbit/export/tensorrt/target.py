"""TensorRT as a target: a QDQ model by its rules, a command that builds it, and its engine where there is a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lowbit.errors import RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, Wish
from lowbit.export.named_session import NamedSession, fixed_size, float_words, on_onnxruntime, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.stepwise import stepwise
from lowbit.export.tensorrt import engine, rules, writer
from lowbit.export.tensorrt.command import write_command
from lowbit.plugins import named_version
from lowbit.quant.affine import Affine
from lowbit.types import RangeMethod, TensorInfo

KERNELS = "tensorrt"
NUMERICS = "onnxruntime: numerics only"
NOT_BUILT = "rules hold; not built"
_INSTALL = "TensorRT 10 or later with its Python package, torch, and an NVIDIA GPU"


@dataclass(frozen=True)
class State:
    """What opening an artifact needs.

    Attributes:
        inputs: Of the model.
        outputs: Output -> its grid, of outputs that are rounded.
        most: Largest batch.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: Mapping[str, Affine]
    most: int


class TensorRt:
    """See `lowbit.export.base.Target`."""

    name = "tensorrt"
    title = writer.TITLE
    wishes = (
        Wish("ranges", "mse", "how activations are calibrated on symmetric grids", ("entropy", "minmax", "mse", "percentile")),
        Wish("sums", writer.BOTH, "residual sums read both operands from pairs, or the shortcut alone", (writer.BOTH, writer.SHORTCUT)),
        Wish("max_batch", 1, "largest number of samples a call; 1 fixes it"),
    )
    extra: str | None = None

    def version(self) -> str | None:
        """Of TensorRT; without it of onnx, which is enough to write and check a model."""
        return engine.tensorrt_version() or named_version("onnx")

    def abilities(self) -> Abilities:
        """Run where TensorRT and a GPU are; elsewhere held against the rules, and onnxruntime computes the numbers."""
        if engine.ready():
            return Abilities(True, "run", words="built and run by TensorRT on this machine's GPU")
        return Abilities(True, "checked", (_INSTALL,), NOT_BUILT)

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes NAME.onnx and build.sh."""
        most = int(settings["max_batch"])
        if most < 1:
            raise UsageError(f"max_batch={most} is no number of samples.", "Give 1, which fixes it, or the largest that will come.")
        size = fixed_size(source.inputs)
        if most > 1 and size is not None:
            raise UsageError(f"The model itself takes {size} a call, so that max_batch={most} cannot be.", "Leave max_batch out.")
        method = cast(RangeMethod, settings["ranges"])
        path = folder / f"{source.name}.onnx"
        written = writer.write(source, path, method=method, sums=str(settings["sums"]), batch=1 if most == 1 else None)
        files = (path, write_command(folder, path.name, source.inputs, most), *write_beside(source, folder))
        notes = (
            "./build.sh builds the engine; do it on the GPU that will run it.",
            *(() if engine.ready() else ("Not built: TensorRT itself has not seen this file.",)),
            *float_words(written.floats),
        )
        facts: dict[str, Setting] = {"calibration": method, "sums": settings["sums"], "max_batch": size or most}
        return Artifact(path, files, facts, notes, State(source.inputs, written.outputs, most))

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """TensorRT's documented rules."""
        return rules.check(artifact.main)

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002
        """TensorRT's where they can run, and onnxruntime's CPU for the numbers of the file."""
        return (KERNELS, NUMERICS) if engine.ready() else (NUMERICS,)

    def reference(self, artifact: Artifact) -> NamedSession:
        """The QDQ file step by step."""
        return stepwise(artifact.main, _state(artifact).outputs)

    def open(self, artifact: Artifact, kernels: str) -> NamedSession:
        """Builds an engine, or loads the file on onnxruntime."""
        state = _state(artifact)
        if kernels == KERNELS and engine.ready():
            built = engine.Engine(artifact.main, {info.name: info for info in state.inputs}, state.most)
            return NamedSession(built.run, built.close, state.outputs, size=fixed_size(state.inputs))
        if kernels != NUMERICS:
            raise RunError(
                f"There are no kernels '{kernels}' for TensorRT here; there are: {', '.join(self.kernel_sets(artifact))}.", _INSTALL
            )
        return on_onnxruntime(artifact.main, state.outputs)


def _state(artifact: Artifact) -> State:
    """What `write` left; of a file that comes from elsewhere nothing is known."""
    return artifact.state if isinstance(artifact.state, State) else State((), {}, 1)
