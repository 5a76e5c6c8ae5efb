"""A language model with outlier channels in its activations that computes what it did: what W8A8 methods are judged on.

    python benchmarks/llm_outliers.py FOLDER OUT [--factor 50] [--channels 4]

A few channels of each norm are multiplied and the columns that read them divided, so that what linear layers are fed there is `factor`
times as large, as in language models of several billion parameters (Dettmers et al. 2022, arXiv 2208.07339).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def with_outliers(folder: Path, out: Path, *, factor: float = 50.0, channels: int = 4, seed: int = 0) -> tuple[int, ...]:
    """Writes a copy of a Llama-shaped Hugging Face folder with outlier channels, in float32: 16 bit would round the fold.

    Args:
        folder: With config.json, model.safetensors and the tokenizer.
        out: Made if absent.
        factor: Of the channels' activations.
        channels: How many, the same in all blocks.
        seed: Of their choice.

    Returns:
        The channels.
    """
    from safetensors.numpy import load_file, save_file

    tensors = {name: value.astype(np.float32) for name, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    chosen = np.sort(np.random.default_rng(seed).choice(config["hidden_size"], channels, replace=False))
    for layer in range(config["num_hidden_layers"]):
        for norm, readers in READERS.items():
            tensors[f"model.layers.{layer}.{norm}.weight"][chosen] *= np.float32(factor)
            for reader in readers:
                tensors[f"model.layers.{layer}.{reader}.weight"][:, chosen] /= np.float32(factor)
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, out / file.name)
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2), encoding="utf-8")
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return tuple(int(each) for each in chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, default=50.0)
    parser.add_argument("--channels", type=int, default=4)
    given = parser.parse_args()
    print(*with_outliers(given.folder, given.out, factor=given.factor, channels=given.channels))
