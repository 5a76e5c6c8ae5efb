"""The target `litert`: one .tflite file with our own scales, for phones, Raspberry Pis and microcontrollers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lowbit.errors import ModelError, RunError, UsageError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, TargetSession, Wish
from lowbit.export.litert import check, metadata, opening, outline, sessions, vela, writer
from lowbit.export.litert.recalibrated import census, environment, recipes
from lowbit.export.litert.recalibrated.write import Recalibrated
from lowbit.export.litert.recalibrated.write import write as write_recalibrated
from lowbit.export.named_session import in_layout, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.program.program import Program
from lowbit.plugins import installed_version

MODEL = "model.tflite"
FLOAT_INPUT = Wish("float_input", True, "Take real numbers and round them inside; false: take levels of the input's grid, int8.")
FLOAT_OUTPUT = Wish("float_output", True, "Answer in real numbers; false: in levels of the outputs' grids, int8.")

RECALIBRATED = "recalibrated: "
"""In front of the names of kernel sets, so that no number stands without it."""
FAST = (sessions.XNNPACK, sessions.BUILT_IN)


class LiteRT:
    """Files for LiteRT, which was TensorFlow Lite, and for TensorFlow Lite Micro."""

    name = "litert"
    title = "LiteRT"
    extra = "litert"
    wishes = (
        FLOAT_INPUT,
        FLOAT_OUTPUT,
        Wish(
            "way",
            "auto",
            "table: our own file with the bundle's scales; recalibrated: litert-torch and ai-edge-quantizer with scales of their own; "
            "auto: the table's, and where the model has what that lacks, the other.",
            ("auto", "table", "recalibrated"),
        ),
        Wish(
            "recipe",
            "auto",
            "Recalibrated: static: activations in int8, ranges from samples; dynamic: weights alone in int8, no samples needed; auto: "
            "static for convolutions with data, else dynamic.",
            ("auto", "static", "dynamic"),
        ),
        Wish("length", 0, "Recalibrated: what an open axis (tokens) becomes; 0: what the samples of --data have."),
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
        missing += () if environment.environment() is not None else (environment.missing(),)
        return Abilities(there, "run", missing, "run on this CPU, on LiteRT's and TensorFlow Lite Micro's own kernels")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes model.tflite, and labels.txt and preprocess.yaml where they are known; see `Target.write`."""
        if settings["way"] == "recalibrated":
            return self._recalibrated(source, folder, settings)
        try:
            return self._from_table(source, folder, settings)
        except ModelError as error:
            if settings["way"] == "table" or settings["ethos_u"] != "none" or environment.environment() is None:
                raise ModelError(error.message, " ".join(filter(None, (error.hint, _other_way())))) from error
            return self._instead(source, folder, settings, error)

    def _instead(self, source: Neutral, folder: Path, settings: Mapping[str, Setting], error: ModelError) -> Artifact:
        """The other way, after the table's has failed; where that fails, too, people are told both."""
        try:
            return self._recalibrated(source, folder, settings, error.message)
        except ModelError as other:
            raise ModelError(f"{error.message} Nor can it be recalibrated: {other.message}", other.hint) from other

    def _recalibrated(self, source: Neutral, folder: Path, settings: Mapping[str, Setting], why: str = "") -> Artifact:
        if settings["ethos_u"] != "none":
            raise UsageError(
                "Ethos-U runs integers alone, which a recalibrated file does not promise.", "Leave ethos_u out, or --set way=table."
            )
        return write_recalibrated(source, folder, settings, MODEL, why)

    def _from_table(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        from lowbit.export.program.lower import lower

        program = lower(source, float_input=bool(settings["float_input"]), float_output=bool(settings["float_output"]))
        if given := [name for name, default in (("recipe", "auto"), ("length", 0)) if settings[name] != default]:
            raise UsageError(
                f"{' and '.join(given)} belong to a recalibrated file, and this model is written from the bundle's own table.",
                "Leave them out, or add --set way=recalibrated.",
            )
        content = file_of(program, source)
        files = write_files(folder, content, in_layout(source, program))
        facts = {**facts_of(program, content), **memory_of(program, content)}
        notes = [f"Written with the schema of ai-edge-litert {self.version()}; scales, zero points and weights are the bundle's own."]
        notes += program.notes
        if settings["ethos_u"] != "none":
            expected = vela.estimate(content, str(settings["ethos_u"]))
            facts |= expected.facts()
            notes += [f"Ethos-U is a {vela.LABEL}: it was compiled, not run.", *(f"Stays on the CPU: {why}" for why in expected.reasons)]
        return Artifact(files[0], files, facts, tuple(notes), program, program)

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """The file read back, the 8-bit specification, and what is slow; of a recalibrated file, what its operators compute in."""
        if is_recalibrated(artifact):
            return census.findings(artifact.main.read_bytes(), writer.schema())
        program = program_of(artifact)
        return [*check.findings(artifact.main.read_bytes(), program), *check.slow(program)]

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:
        """LiteRT's three and TensorFlow Lite Micro's, as far as they are installed; of a recalibrated file LiteRT's two fast ones."""
        if is_recalibrated(artifact):
            return tuple(f"{RECALIBRATED}{name}" for name in FAST if name in sessions.kernel_sets())
        return sessions.kernel_sets()

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Loads the file on one thread."""
        return open_file(artifact.main, kernels.removeprefix(RECALIBRATED))

    def timed(self, artifact: Artifact) -> dict[str, tuple[str, Path]]:
        """The two kernel sets that are meant to be fast: reference kernels are not, and this machine is no microcontroller."""
        runtimes = {sessions.XNNPACK: "Xnnpack", sessions.BUILT_IN: "BuiltIn"}
        said = RECALIBRATED if is_recalibrated(artifact) else ""
        return {f"{said}{kernels}": (f"lowbit.export.litert.timing:{name}", artifact.main) for kernels, name in runtimes.items()}

    def samples_wanted(self, source: Neutral, settings: Mapping[str, Setting]) -> int:
        """For a recalibrated file; the table's own needs none."""
        from lowbit.export.program.lower import lower

        if settings["way"] == "table" or environment.environment() is None:
            return 0
        if settings["way"] == "auto":
            try:
                lower(source, float_input=True, float_output=True)
            except ModelError:
                return recipes.wanted(source, settings)
            return 0
        return recipes.wanted(source, settings)


def is_recalibrated(artifact: Artifact) -> bool:
    """Whether a file was written the other way."""
    return isinstance(artifact.state, Recalibrated)


def _other_way() -> str:
    """What to do where the table's way ends."""
    if environment.environment() is not None:
        return "Or let litert-torch write it, on scales of its own: --set way=recalibrated."
    return f"Or let litert-torch write it, on scales of its own, once that is installed: {environment.missing()}."


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


def open_file(path: Path, kernels: str) -> TargetSession:
    """A file that lowbit wrote, now or earlier, on one thread."""
    return opening.opened(path.read_bytes(), kernels)


def program_of(artifact: Artifact) -> Program:
    """The program that an artifact was written from.

    Raises:
        RunError: it comes from elsewhere.
    """
    if not isinstance(artifact.state, Program):
        raise RunError(f"{artifact.main.name} was not written in this run, so there is no program to hold it against.")
    return artifact.state
