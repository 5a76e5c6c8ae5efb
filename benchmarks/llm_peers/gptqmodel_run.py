"""GPTQModel's quantization of a model, written as the plain weights that it stands for.

    python gptqmodel_run.py FOLDER OUT --bits 4 --group 32 --calibration FILE... [--windows 128 --length 256]

Prints JSON: seconds, size of the quantized linear layers in bytes, version. Runs in an environment of its own: requirements-gptqmodel.txt.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peer_folder
import torch

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own default on two cores is one, which its loader refuses


def main() -> None:
    given = peer_folder.arguments(__doc__)
    if given.threads:
        torch.set_num_threads(given.threads)
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel import __version__ as version

    rows = peer_folder.windows(given.folder, given.calibration, given.windows, given.length)
    texts = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    began = time.perf_counter()
    model = GPTQModel.load(str(given.folder), QuantizeConfig(bits=given.bits, group_size=given.group, sym=True), device="cpu")
    model.quantize(texts, batch_size=8, backend=BACKEND.GPTQ_TORCH if hasattr(BACKEND, "GPTQ_TORCH") else BACKEND.TORCH)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        changed, size = read(Path(folder), given.bits)
    peer_folder.write(given.folder, given.out, changed)
    print(json.dumps({"peer": "gptqmodel", "version": version, "seconds": round(seconds, 1), "linear_bytes": size, "layers": len(changed)}))


def read(folder: Path, bits: int) -> tuple[dict[str, torch.Tensor], int]:
    """Weights [O, K] that the saved tensors stand for, and the bytes of levels, scales and zero points (the column indices are implied)."""
    from safetensors.torch import load_file

    config = json.loads((folder / "quantize_config.json").read_text(encoding="utf-8"))
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    offset = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    found, size = {}, 0
    for name in [each.removesuffix(".qweight") for each in tensors if each.endswith(".qweight")]:
        parts = {part: tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        found[f"{name}.weight"] = dequantized(parts, bits, offset)
        # Symmetric: the zero points are all the same, and no format for such need store them.
        size += parts["qweight"].numel() * 4 + parts["scales"].numel() * 2
    return found, size


def dequantized(parts: Mapping[str, Any], bits: int, offset: int) -> torch.Tensor:
    """GPTQ's layout: levels packed along the inputs, zero points along the outputs, 32 / bits to a word."""
    if 32 % bits:
        raise SystemExit("Only 2, 4 and 8 bits are read.")
    shifts, mask = torch.arange(0, 32, bits, dtype=torch.int32), 2**bits - 1
    levels = (parts["qweight"][:, None, :] >> shifts[None, :, None]) & mask  # [K / n, n, O]
    levels = levels.reshape(-1, levels.shape[-1]).float()
    zeros = ((parts["qzeros"][:, :, None] >> shifts) & mask).reshape(len(parts["qzeros"]), -1)
    zeros = ((zeros + offset) & mask).float() if offset else zeros.float()
    group = parts["g_idx"].long()
    weights: torch.Tensor = (levels - zeros[group]) * parts["scales"].float()[group]
    return weights.T


if __name__ == "__main__":
    main()
