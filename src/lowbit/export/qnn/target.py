"""Qualcomm QNN as a target: a QDQ model by its rules, a context binary, and the emulated HTP to try both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit.errors import ModelError, RunError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, Wish
from lowbit.export.named_session import NamedSession, on_onnxruntime, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.qnn import rules, writer
from lowbit.export.qnn.session import KERNELS, Htp, emulates, plugin_version
from lowbit.export.stepwise import stepwise
from lowbit.plugins import named_version
from lowbit.quant.affine import Affine

NUMERICS = "onnxruntime: numerics only"
LICENCE = "onnxruntime-qnn carries Qualcomm's libraries under Qualcomm's own licence: read it before you ship them."
_INSTALL = "pip install 'lowbit[qnn]' (Linux on x86-64; Qualcomm's licence)"
_ARCHITECTURES = (0, 68, 69, 73, 75, 79, 81)


@dataclass(frozen=True)
class State:
    """What opening an artifact needs.

    Attributes:
        outputs: Output -> its grid.
        options: Of the execution provider.
    """

    outputs: Mapping[str, Affine]
    options: Mapping[str, str]


class Qnn:
    """See `lowbit.export.base.Target`."""

    name = "qnn"
    title = writer.TITLE
    wishes = (
        Wish("activations", 8, "bits of activations; 16 is closer to FP32 and slower", (8, 16)),
        Wish("weights", 8, "bits of weights", (8,)),
        Wish("context", True, "compile a context binary, where onnxruntime-qnn is installed"),
        Wish("soc", 0, "number of the chip (Qualcomm's `soc_model`) that it is compiled for; 0: QNN's own choice"),
        Wish("htp_arch", 0, "generation of the Hexagon processor that it is compiled for; 0: QNN's own choice", _ARCHITECTURES),
    )
    extra: str | None = "qnn"

    def version(self) -> str | None:
        """Of the plugin; without it of onnx, which is enough to write and check a model."""
        return named_version("onnxruntime_qnn", "onnxruntime-qnn") or named_version("onnx")

    def abilities(self) -> Abilities:
        """Emulated where the plugin is, held against the rules elsewhere."""
        if emulates():
            return Abilities(True, "emulated", words="run by Qualcomm's emulation of the HTP on x86; not run on a phone")
        return Abilities(True, "checked", (_INSTALL,), "meets documented conditions; neither compiled nor emulated")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes NAME.onnx and, where it can be compiled, NAME_ctx.onnx with its binary."""
        bits = int(settings["activations"])
        written = writer.write(source, folder / f"{source.name}.onnx", bits)
        options = {name: str(settings[wish]) for name, wish in (("soc_model", "soc"), ("htp_arch", "htp_arch")) if settings[wish]}
        files = [written.path, *write_beside(source, folder)]
        facts: dict[str, Setting] = {"activation_bits": bits, "weight_bits": 8, "grids_kept": written.same, "grids_added": written.new}
        notes: list[str] = []
        if settings["context"] and emulates():
            compiled = _compile(written, folder, options)
            files += compiled
            facts |= {"context_bytes": sum(file.stat().st_size for file in compiled), "onnxruntime_qnn": plugin_version() or ""}
            made_for = " and ".join(f"{name} = {value}" for name, value in options.items())
            made_for = made_for or "the generation that QNN takes by itself; --set htp_arch= names that of your phone"
            notes.append(f"{compiled[0].name} loads without compiling, with this version of QNN or later. It was compiled for {made_for}.")
        elif options:
            notes.append(f"{' and '.join(options)} belong to a context binary, and none was compiled.")
        if settings["context"] and not emulates():
            notes.append(f"No context binary: {_INSTALL} compiles one; the phone compiles the model itself at its first start.")
        notes += [*_words(written), LICENCE]
        return Artifact(written.path, tuple(files), facts, tuple(notes), State(written.outputs, options))

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """QNN's documented rules, and those that the emulator taught."""
        return rules.check(artifact.main)

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002
        """The emulated HTP where it is installed, and onnxruntime's CPU for the numbers of the file."""
        return (KERNELS, NUMERICS) if emulates() else (NUMERICS,)

    def reference(self, artifact: Artifact) -> NamedSession:
        """The QDQ file step by step."""
        return stepwise(artifact.main, _state(artifact).outputs)

    def open(self, artifact: Artifact, kernels: str) -> NamedSession:
        """Loads the QDQ file; the emulator compiles it again."""
        state = _state(artifact)
        if kernels == KERNELS and emulates():
            htp = Htp(artifact.main, state.options)
            return NamedSession(htp.run, htp.close, state.outputs)
        if kernels != NUMERICS:
            raise RunError(f"There are no kernels '{kernels}' for QNN here; there are: {', '.join(self.kernel_sets(artifact))}.", _INSTALL)
        return on_onnxruntime(artifact.main, state.outputs)


def _state(artifact: Artifact) -> State:
    """What `write` left; of a file that comes from elsewhere nothing is known."""
    return artifact.state if isinstance(artifact.state, State) else State({}, {})


def _compile(written: writer.Written, folder: Path, options: Mapping[str, str]) -> list[Path]:
    """The context binary and the model that names it.

    Raises:
        ModelError: QNN does not compile the model.
    """
    context = folder / f"{written.path.stem}_ctx.onnx"
    try:
        Htp(written.path, options, context=context).close()
    except RunError as error:
        raise ModelError(
            error.message, "Try --set activations=8 or another candidate; --set context=false writes the model uncompiled."
        ) from error
    return [context, *sorted(folder.glob(f"{context.stem}*.bin"))]


def _words(written: writer.Written) -> list[str]:
    """What people should know of the grids."""
    found = []
    if written.fresh:
        shown = ", ".join(written.fresh[:3]) + (f" and {len(written.fresh) - 3} more" if len(written.fresh) > 3 else "")
        found.append(f"{len(written.fresh)} products are 8 bit here that had no grid, or one that QNN lacks: {shown}.")
    return found
