"""What the scripts of this folder share: calibration windows, and a plain 16-bit Hugging Face folder of what a peer's weights stand for."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def windows(folder: Path, files: Sequence[Path], count: int, length: int) -> Any:
    """Token windows int64 [N, T], spread evenly over all texts, none over the border of two."""
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = []
    for file in files:
        with file.open(encoding="utf-8", newline="") as stream:
            ids = np.array(tokenizer.encode(stream.read(), add_special_tokens=False).ids, np.int64)
        rows.append(ids[: len(ids) // length * length].reshape(-1, length))
    every = np.concatenate(rows)
    return every[np.unique(np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int))]


def write(folder: Path, out: Path, changed: Mapping[str, Any]) -> None:
    """The source's folder with the weights named in `changed` (torch tensors) replaced, in float32: 16 bit would round them once more."""
    from safetensors.torch import load_file, save_file

    tensors = {name: value.float() for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    if unknown := set(changed) - set(tensors):
        raise SystemExit(f"The peer changed tensors that the model does not have: {sorted(unknown)[:3]}")
    tensors.update({name: value.float().contiguous() for name, value in changed.items()})
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json") and file.is_file():
            shutil.copyfile(file, out / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
