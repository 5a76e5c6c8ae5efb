"""What runs is an ONNX file or a PyTorch program (.pt2). What they have in common, by the ending of their name."""

from __future__ import annotations

from pathlib import Path

from lowbit.errors import UsageError
from lowbit.graph import load
from lowbit.runtimes import registry
from lowbit.runtimes.base import Format, Runtime, opens
from lowbit.runtimes.programs import describe_program
from lowbit.types import Model

KINDS: dict[Format, str] = {"onnx": "an ONNX file", "pt2": "a PyTorch program"}


def format_of(path: Path) -> Format:
    """By the name: programs end in .pt2, and whatever does not is taken for ONNX."""
    return "pt2" if path.suffix == ".pt2" else "onnx"


def load_artifact(path: str | Path) -> Model:
    """Describes a file that some runtime opens.

    Raises:
        ModelError: it is missing, broken, or neither ONNX nor a program.
    """
    path = Path(path)
    return describe_program(path) if format_of(path) == "pt2" and path.is_file() else load.load_model(path)


def artifact_files(path: Path) -> list[Path]:
    """The file, and the external data of an ONNX file."""
    return [path] if format_of(path) == "pt2" else [path, *load.external_files(path)]


def artifact_size(path: Path) -> int:
    """Bytes of the file with its external data."""
    return sum(file.stat().st_size for file in artifact_files(path))


def need_opens(runtime: Runtime, path: Path) -> None:
    """Refuses a file that the runtime does not open, before it is opened.

    Raises:
        UsageError: it is of another format.
    """
    form = format_of(path)
    if opens(runtime) != form:
        able = [each.name for each in [*registry.available(), *registry.on_request()] if opens(each) == form]
        hint = f"Run it on {' or '.join(able)}: --runtime {able[0]}." if able else "pip install 'lowbit[torch]', and say --runtime torch."
        raise UsageError(f"'{path.name}' is {KINDS[form]}; {runtime.name} opens {KINDS[opens(runtime)]}.", hint)
