"""A model and data small enough to optimize in a test: a random CNN, labelled by its own answers, with some labels wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from small_models import cnn, reference
from small_models import images as random_images


@dataclass(frozen=True)
class Case:
    """Files of one case."""

    model: Path
    data: Path


def make_case(folder: Path, n: int = 400) -> Case:
    """Writes model and data; FP32 is right on nine samples of ten."""
    model = cnn(folder / "cnn.onnx")
    x = random_images(n)
    labels = reference(model, {"input.1": x})["logits"].argmax(1)
    wrong = np.random.default_rng(0).random(n) < 0.1
    labels[wrong] = (labels[wrong] + 1) % 10
    data = folder / "data.npz"
    np.savez(data, images=x, labels=labels, site=np.where(np.arange(n) % 3 == 0, "north", "south"))
    return Case(model, data)
