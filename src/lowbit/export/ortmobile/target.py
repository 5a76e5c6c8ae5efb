"""onnxruntime on phones: the ORT format, with what a build needs that holds no other operators.

The file is made with all optimizations done ("fixed" style). The other style, with optimizations for the phone to replay
(`.with_runtime_opt.ort`), leaves the pairs in the graph unless the app asks for the replay, and is then several times slower.
https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowbit.errors import ModelError, RunError
from lowbit.export.base import Abilities, Artifact, Finding, Setting, Wish
from lowbit.export.named_session import NamedSession, float_words, on_onnxruntime, write_beside
from lowbit.export.neutral import Neutral
from lowbit.export.qdq_again import Rounded, write_qdq
from lowbit.plugins import installed_version
from lowbit.quiet import no_output, no_telemetry
from lowbit.runtimes.onnxruntime_cpu import DISTRIBUTIONS

KERNELS = "onnxruntime CPU"
_CONFIG = "required_operators.config"
_INNER = re.compile(r"\{[^{}]*\}")
_QUANTIZED = ("QLinearConv", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulNBits")
"""Operators that multiply integers."""


class OrtMobile:
    """See `lowbit.export.base.Target`."""

    name = "ort-mobile"
    title = "ONNX Runtime mobile"
    wishes = (Wish("platform", "arm", "processor that the graph is optimized for", ("arm", "amd64")),)
    extra: str | None = None

    def version(self) -> str | None:
        """Of onnxruntime, which converts and runs it."""
        return installed_version("onnxruntime", *DISTRIBUTIONS)

    def abilities(self) -> Abilities:
        """onnxruntime itself runs the file here, on another processor than a phone's."""
        return Abilities(self.version() is not None, "run", words="run by onnxruntime on this machine's processor; not run on a phone")

    def write(self, source: Neutral, folder: Path, settings: Mapping[str, Setting]) -> Artifact:
        """Writes NAME.ort, the list of operators that it needs, and what helps people to feed it."""
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rounded = write_qdq(source, Path(place) / f"{source.name}.onnx")
            _convert(rounded.path, folder, str(settings["platform"]))
        main, config = folder / f"{source.name}.ort", folder / f"{source.name}.{_CONFIG}"
        config.write_text(_without_paths(config.read_text(encoding="utf-8"), main.name), encoding="utf-8")
        operators = operators_of(config)
        facts: dict[str, Setting] = {
            "operators": len(operators),
            "onnxruntime": self.version() or "",
            "platform": settings["platform"],
        }
        notes = (
            f"A build with {config.name} (build.py --minimal_build --include_ops_by_config) holds these operators alone; the released "
            "packages run the file as it is.",
            f"The app's onnxruntime should be {self.version()} or later: older ones may not know the file's format.",
            *float_words(rounded.floats),
        )
        return Artifact(main, (main, config, *write_beside(source, folder)), facts, notes, rounded)

    def check(self, artifact: Artifact) -> Sequence[Finding]:
        """Whether the file is the one to ship, and whether its kernels are integer ones."""
        found = []
        if b"ORTM" not in artifact.main.read_bytes()[:8]:
            found.append(Finding("ORT format", "error", f"{artifact.main.name} does not begin as an ORT file does; export it again."))
        operators = operators_of(artifact.main.with_suffix(f".{_CONFIG}"))
        if not any(name in _QUANTIZED for name in operators):
            text = "No operator multiplies integers: the file is no faster than floating point. Export another candidate."
            found.append(Finding("integer kernels", "warning", text))
        plain = [name for name in ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul") if name in operators]
        if plain:
            found.append(Finding("integer kernels", "note", f"Some of {', '.join(plain)} run in floating point, as in the candidate."))
        return found

    def kernel_sets(self, artifact: Artifact) -> tuple[str, ...]:  # noqa: ARG002  # the same for every file
        """onnxruntime's own kernels for this machine."""
        return (KERNELS,)

    def open(self, artifact: Artifact, kernels: str) -> NamedSession:
        """Loads the .ort file, not what it was made from."""
        if kernels != KERNELS:
            raise RunError(f"ONNX Runtime mobile has no kernels '{kernels}' here; it has '{KERNELS}'.")
        grids = artifact.state.outputs if isinstance(artifact.state, Rounded) else {}
        return on_onnxruntime(artifact.main, grids)


def operators_of(config: Path) -> tuple[str, ...]:
    """Operators that a list of required ones names: lines of "domain;operator set;names"."""
    names: list[str] = []
    for line in config.read_text(encoding="utf-8").splitlines():
        while "{" in line:  # types that it is limited to, in braces that may hold others
            line, types = _INNER.subn("", line)
            if not types:
                break
        if line and not line.startswith("#"):
            names += line.rpartition(";")[2].split(",")
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _convert(path: Path, folder: Path, platform: str) -> None:
    no_telemetry()
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    try:
        with no_output():
            convert_onnx_models_to_ort(path, folder, [OptimizationStyle.Fixed], target_platform=platform)
    except Exception as error:  # onnxruntime's classes share no base but Exception
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"onnxruntime cannot convert the model to its mobile format: {said}", "Export another candidate.") from error


def _without_paths(config: str, name: str) -> str:
    """The list says of which files it was made, by where they lay on this machine; here it is by the file's name."""
    kept = [line for line in config.splitlines() if not line.startswith("#")]
    return f"# Operators that {name} needs.\n" + "\n".join(kept) + "\n"
