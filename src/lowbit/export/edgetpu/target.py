"""The target `edgetpu`: LiteRT's file under the Edge TPU's constraints. Its compiler ships with no package, so it is only checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowbit.export.base import Abilities, Artifact, Finding, Setting, TargetSession
from lowbit.export.edgetpu import rules
from lowbit.export.edgetpu.rewrite import rewrite
from lowbit.export.litert import check, sessions
from lowbit.export.litert.target import FLOAT_INPUT, FLOAT_OUTPUT, facts_of, file_of, open_file, program_of, write_files
from lowbit.export.named_session import in_layout
from lowbit.export.neutral import Neutral
from lowbit.plugins import named_version

_ON_CPU = "cpu: "
"""What runs here are LiteRT's kernels on this CPU; no Edge TPU takes part."""


class EdgeTpu:
    """Files for Google's Edge TPU (Coral)."""

    name = "edgetpu"
    title = "Edge TPU"
    extra = "litert"
    wishes = (replace(FLOAT_INPUT, default=False), replace(FLOAT_OUTPUT, default=False))

    def version(self) -> str | None:
        """Of ai-edge-litert, which writes it."""
        return named_version("ai_edge_litert", "ai-edge-litert")

    def abilities(self) -> Abilities:
        """Written, and held against the documentation."""
        there = self.version() is not None
        return Abilities(there, "checked", () if there else ("pip install 'lowbit[litert]'",), rules.LABEL)

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes model.tflite with one scale for the weights of each fully connected layer; see `Target.write`."""
        from lowbit.export.program.lower import lower

        real = {name: bool(settings[name]) for name in ("float_input", "float_output")}
        program = rewrite(lower(source, **real, per_tensor_dense=True))
        content = file_of(program, source)
        files = write_files(folder, content, in_layout(source, program))
        cut = rules.split(program)
        predicted = {"predicted_on_edge_tpu": len(cut.mapped), "predicted_on_cpu": len(cut.before) + len(cut.fallen)}
        notes = (
            "Not compiled: the Edge TPU's compiler ships with no package. To compile it: `edgetpu_compiler model.tflite` (Debian, x86-64).",
            "Its kernel sets are LiteRT's on this CPU: they show what the integers give, not the Edge TPU.",
            *program.notes,
        )
        return Artifact(files[0], files, {**facts_of(program, content), **predicted}, notes, program, program)

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """The documented conditions, and LiteRT's own rules."""
        program = program_of(artifact)
        return [*check.findings(artifact.main.read_bytes(), program), *rules.findings(program)]

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """LiteRT's, each labelled as this CPU's."""
        return tuple(_ON_CPU + name for name in sessions.kernel_sets() if name != sessions.MICRO)

    def open(self, artifact: Artifact, kernels: str) -> TargetSession:
        """Loads the file on LiteRT's kernels."""
        return open_file(artifact.main, kernels.removeprefix(_ON_CPU))
