"""llama.cpp's own quantizer, as a peer and for formats that only it writes (K-quants): a 16-bit GGUF file in, a smaller one out.

It runs in a process of its own: it prints, and it aborts where its authors did not expect an input.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import Interrupted, ModelError, UsageError, unknown
from lowbit.llm.decoder import Decoder
from lowbit.llm.writers.gguf_names import layout
from lowbit.types import Array

PRESETS: tuple[str, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS")
PRESETS += ("Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K")
"""llama.cpp's names of mixtures, from the largest; what it is told by name as `preset` of a recipe."""

NEED_IMPORTANCE = ("IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
"""Mixtures that it makes only with an importance matrix."""

HEADS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30}
"""Types that the embedding and the head can be asked to have -> ggml's number."""


def quantize(
    source: Path,
    target: Path,
    preset: str,
    *,
    importance: Mapping[str, Array] | None = None,
    head: str | None = None,
    pure: bool = False,
    threads: int = 0,
) -> Path:
    """Lets llama.cpp quantize a file.

    Args:
        source: A GGUF file in 16 or 32 bit.
        target: The file to write; its folder is made if absent.
        preset: "Q4_K_M", "Q8_0", ...
        importance: Tensor of the file -> float32 [K], the mean square of each input (`importance_matrix`); None: all are alike.
        head: Type of the embedding and the head; None: the preset's choice.
        pure: Every layer in the preset's own type, no mixture.
        threads: 0: all cores.

    Returns:
        The file. Where 256 does not divide a layer's inputs, llama.cpp takes blocks of 32 instead of K-quants, with more bits:
        `lowbit.llm.writers.gguf_weights.types` tells what it did.

    Raises:
        UsageError: an unknown preset, or one that needs an importance matrix; llama-cpp-python is not installed.
        ModelError: llama.cpp could not quantize the file.
        Interrupted: the disk is full.
    """
    preset = preset.upper()
    if preset not in PRESETS + NEED_IMPORTANCE:
        raise unknown("preset of llama.cpp", preset, PRESETS + NEED_IMPORTANCE)
    if preset in NEED_IMPORTANCE and not importance:
        raise UsageError(f"llama.cpp makes {preset} only with an importance matrix.", "Give calibration text, or choose Q2_K or more.")
    if head is not None and head not in HEADS:
        raise unknown("type of the head", head, HEADS)
    if not source.is_file():
        raise ModelError(f"There is no file '{source}'.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="importance-") as scratch:
        matrix = Path(scratch) / "importance.npz"
        if importance:
            np.savez(matrix, **{name: np.asarray(each, np.float32) for name, each in importance.items()})  # type: ignore[arg-type]
        job = {
            "source": str(source),
            "target": str(partial),
            "preset": preset,
            "importance": str(matrix) if importance else None,
            "head": head,
            "pure": pure,
            "threads": threads,
        }
        try:
            _run(job, source.name)
            return partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def importance_matrix(decoder: Decoder, names: tuple[str, ...], powers: Mapping[str, Array]) -> dict[str, Array]:
    """The mean squares of what layers read, by llama.cpp's names.

    Args:
        decoder: Whose layers.
        names: Of all of its tensors.
        powers: Linear layer ("blocks.3.mlp.down") -> float [K], mean square of each input over a calibration text.
    """
    found = {}
    for target in layout(decoder, names):
        layer = target.sources[0].removesuffix(".weight") if target.sources else ""
        if not target.vector and layer in powers:
            found[target.name] = np.asarray(powers[layer], np.float32)
    return found


def _run(job: Mapping[str, Any], name: str) -> None:
    command = [sys.executable, "-m", "lowbit.llm.writers.llamacpp_quantizer", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = [line for line in done.stderr.strip().splitlines() if line.strip()]
    if any("No module named 'llama_cpp'" in line for line in said):
        raise UsageError("llama.cpp's Python package is not installed.", "pip install 'lowbit[llamacpp]'")
    if any("No space left" in line or "failed to write" in line.lower() for line in said):
        raise Interrupted("The disk is full.", "Free some space; the same command resumes.")
    raise ModelError(
        f"llama.cpp could not quantize '{name}' to {job['preset']}: {said[-1] if said else f'it ended with {done.returncode}'}"
    )


def main(job: Mapping[str, Any]) -> int:
    """Runs in the process of its own; errors go to its standard error."""
    import llama_cpp.llama_cpp as library

    last: list[str] = []

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == 4:  # an error
            last.append(text.decode("utf-8", "replace").strip())

    callback = library.llama_log_callback(keep)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    params = library.llama_model_quantize_default_params()
    params.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{job['preset']}")
    params.nthread = job["threads"]
    params.pure = job["pure"]
    if job["head"] is not None:
        params.output_tensor_type = params.token_embedding_type = HEADS[job["head"]]
    kept = _importance(library, Path(job["importance"])) if job["importance"] else None
    if kept is not None:
        params.imatrix = ctypes.cast(kept[0], ctypes.POINTER(library.llama_model_imatrix_data))
    result = library.llama_model_quantize(job["source"].encode(), job["target"].encode(), ctypes.byref(params))
    if result != 0:
        print(last[-1] if last else f"code {result}", file=sys.stderr)
    return 0 if result == 0 else 1


def _importance(library: Any, path: Path) -> tuple[Any, list[Any]]:
    """The matrix as the library's array, which ends with an empty entry, and what must stay in memory with it."""
    held: list[Any] = []
    with np.load(path) as arrays:
        entries = (library.llama_model_imatrix_data * (len(arrays.files) + 1))()
        for index, name in enumerate(arrays.files):
            values = np.ascontiguousarray(arrays[name], np.float32)
            text = name.encode()
            held += [values, text]
            entries[index].name = text
            entries[index].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[index].size = values.size
    return entries, held


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
