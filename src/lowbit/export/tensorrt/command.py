"""The command that builds an engine where TensorRT is: a shell script around `trtexec`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lowbit.types import TensorInfo


def shapes(inputs: Sequence[TensorInfo], batch: int) -> str:
    """All inputs at a batch size, as trtexec reads them: "x:8x3x32x32,mask:8x128"; names with its own signs in quotes, as its help says."""
    names = [f"'{info.name}'" if set(":,") & set(info.name) else info.name for info in inputs]
    sizes = ["x".join(str(size) for size in (batch, *info.shape[1:])) for info in inputs]
    return ",".join(f"{name}:{size}" for name, size in zip(names, sizes, strict=True))


def flags(model: str, inputs: Sequence[TensorInfo], most: int) -> list[str]:
    """What trtexec is told.

    Strongly typed: the pairs say what is int8, everything else keeps its type. TensorRT 10 has to be told so; from 11 on there is
    nothing else, and the flag changes nothing. Shapes are given for models whose batch is open; trtexec refuses them for others.

    Args:
        model: Name of the file.
        inputs: Of the model.
        most: Largest batch; 1 means that it is fixed.
    """
    found = [f"--onnx={model}", f"--saveEngine={Path(model).stem}.plan", "--stronglyTyped"]
    if most > 1:
        found += [f"--minShapes={shapes(inputs, 1)}", f"--optShapes={shapes(inputs, most)}", f"--maxShapes={shapes(inputs, most)}"]
    return found


def write_command(folder: Path, model: str, inputs: Sequence[TensorInfo], most: int) -> Path:
    """Writes build.sh: builds the engine beside the model and times it.

    Args:
        folder: Where the model is.
        model: Its name.
        inputs: Of the model.
        most: Largest batch.
    """
    given = " \\\n  ".join(shlex.quote(flag) for flag in flags(model, inputs, most))
    path = folder / "build.sh"
    path.write_text(
        "#!/bin/sh\n"
        "# Builds the engine on the GPU that it will run on (engines do not move between GPUs), and times it.\n"
        "# TensorRT 10 or later; TRTEXEC names the program where it is not on the path.\n"
        'set -eu\ncd "$(dirname "$0")"\n'
        f'exec "${{TRTEXEC:-trtexec}}" \\\n  {given} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path
