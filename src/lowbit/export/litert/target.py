"""The target `litert`: one .tflite file with our own scales, for phones, Raspberry Pis and microcontrollers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lowbit.errors import RunError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, TargetSession, Wish
from lowbit.export.litert import check, metadata, outline, sessions, vela, writer
from lowbit.export.named_session import write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Program
from lowbit.plugins import installed_version

MODEL = "model.tflite"
FLOAT_INPUT = Wish("float_input", True, "Take real numbers and round them inside; false: take levels of the input's grid, int8.")
FLOAT_OUTPUT = Wish("float_output", True, "Answer in real numbers; false: in levels of the outputs' grids, int8.")


class LiteRT:
    """Files for LiteRT, which was TensorFlow Lite, and for TensorFlow Lite Micro."""

    name = "litert"
    title = "LiteRT"
    extra = "litert"
    wishes = (
        FLOAT_INPUT,
        FLOAT_OUTPUT,
        Wish("ethos_u", "none", "Also ask Arm's compiler what it expects of this Ethos-U; nothing is run.", ("none", *vela.NPUS)),
    )

    def version(self) -> str | None:
        """Of ai-edge-litert."""
        return installed_version("ai_edge_litert", "ai-edge-litert")

    def abilities(self) -> Abilities:
        """Written and run on this CPU."""
        there = self.version() is not None
        lacks = {"litert": not there, sessions.MICRO: sessions.MICRO not in sessions.kernel_sets(), "vela": vela.version() is None}
        missing = tuple(f"pip install 'lowbit[{extra}]'" for extra, lacking in lacks.items() if lacking)
        return Abilities(there, "run", missing, "run on this CPU, on LiteRT's and TensorFlow Lite Micro's own kernels")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes model.tflite, and labels.txt and preprocess.yaml where they are known; see `Target.write`."""
        from lowbit.export.program.lower import lower

        program = lower(source, float_input=bool(settings["float_input"]), float_output=bool(settings["float_output"]))
        content = file_of(program, source)
        files = write_files(folder, content, source)
        facts = {**facts_of(program, content), **memory_of(program, content)}
        notes = [f"Written with the schema of ai-edge-litert {self.version()}; scales, zero points and weights are the bundle's own."]
        notes += program.notes
        if settings["ethos_u"] != "none":
            expected = vela.estimate(content, str(settings["ethos_u"]))
            facts |= expected.facts()
            notes += [f"Ethos-U is a {vela.LABEL}: it was compiled, not run.", *(f"Stays on the CPU: {why}" for why in expected.reasons)]
        return Artifact(files[0], files, facts, tuple(notes), program, program)

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """The file read back, and the 8-bit specification."""
        return check.findings(artifact.main.read_bytes(), program_of(artifact))

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """LiteRT's three and TensorFlow Lite Micro's, as far as they are installed."""
        return sessions.kernel_sets()

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Loads the file on one thread."""
        return open_file(artifact.main, kernels)

    def timed(self, artifact: Artifact) -> dict[str, tuple[str, Path]]:
        """The two kernel sets that are meant to be fast: reference kernels are not, and this machine is no microcontroller."""
        runtimes = {sessions.XNNPACK: "Xnnpack", sessions.BUILT_IN: "BuiltIn"}
        return {kernels: (f"lowbit.export.litert.timing:{name}", artifact.main) for kernels, name in runtimes.items()}


def file_of(program: Program, source: Neutral) -> bytes:
    """The .tflite file of a program, with what the model's bundle knows of samples and classes."""
    described = metadata.describe(program, source.preprocess, source.labels, program.outputs)
    labels = {metadata.LABELS: metadata.labels_file(source.labels)} if source.labels else {}
    return metadata.attach(writer.to_bytes(program, {metadata.NAME: described, outline.NAME: outline.of(program)}), labels)


def write_files(folder: Path, content: bytes, source: Neutral) -> tuple[Path, ...]:
    """The file, and beside it labels and preprocessing for people and programs that do not read metadata."""
    (folder / MODEL).write_bytes(content)
    return (folder / MODEL, *write_beside(source, folder))


def facts_of(program: Program, content: bytes) -> dict[str, Setting]:
    """Numbers of a file."""
    return {
        "operations": len(program.operations),
        "parameter_bytes": sum(tensor.size_bytes for tensor in program.constants),
        "file_bytes": len(content),
        **{name.replace("-", "_"): number for name, number in sessions.versions().items()},
    }


def memory_of(program: Program, content: bytes) -> dict[str, Setting]:
    """TensorFlow Lite Micro's arena; empty where it is not installed. LiteRT itself does not tell."""
    arena = sessions.arena(content, program)
    return {"arena_bytes": arena["total"], "arena_head_bytes": arena["head"]} if {"total", "head"} <= arena.keys() else {}


def open_file(path: Path, kernels: str) -> sessions.LiteRtSession:
    """A file that lowbit wrote, now or earlier, on one thread."""
    content = path.read_bytes()
    sessions.check_file(content, kernels)
    return sessions.LiteRtSession(content, outline.read(content, writer.schema()), kernels)


def program_of(artifact: Artifact) -> Program:
    """The program that an artifact was written from.

    Raises:
        RunError: it comes from elsewhere.
    """
    if not isinstance(artifact.state, Program):
        raise RunError(f"{artifact.main.name} was not written in this run, so there is no program to hold it against.")
    return artifact.state
