"""Image models from the shared data, and a network shaped like ResNet-50."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from calibration import ResNet50

from lowbit.data.open import open_data
from lowbit.data.preprocess import Preprocess
from lowbit.types import TensorInfo
from panel.paths import SHARED, models
from panel.pool import Array, Pool, Split, folds
from panel.subject import Subject, part

IMAGES = SHARED / "imagenet-sample"


def pixels(source: Path, name: str, size: tuple[int, int], preprocess: str | Preprocess) -> tuple[Array, Array | None]:
    """All images of a folder or .npz as a model takes them [n, 3, h, w], and their labels where there are any."""
    steps = Preprocess.preset(preprocess) if isinstance(preprocess, str) else preprocess
    data = open_data(source, [TensorInfo(name, ("batch", 3, *size), "float32")], steps)
    batches = list(data.batches(64))
    labels = None if batches[0].labels is None else np.concatenate([batch.labels for batch in batches])
    return np.concatenate([batch.feeds[name] for batch in batches]), labels


def cifar() -> Pool:
    """Calibrates on 300 training images (NNCF's default), validates on 1,000 others, scores the 10,000 test images."""
    train, train_labels = pixels(SHARED / "cifar10" / "cifar10_train5k.npz", "input", (32, 32), "imagenet")
    test, test_labels = pixels(SHARED / "cifar10" / "cifar10_test10k.npz", "input", (32, 32), "imagenet")
    order = np.random.default_rng(0).permutation(len(train))
    split = Split(order[:300], order[300:1300], np.arange(len(train), len(train) + len(test)))
    return Pool({"input": np.concatenate([train, test])}, np.concatenate([train_labels, test_labels]), (split,))


def imagenet_folds(name: str, size: int, preprocess: str) -> Pool:
    """Five folds: calibrate on 100 of the 500 images, score the other 400."""
    found, labels = pixels(IMAGES, name, (size, size), preprocess)
    return Pool({name: found}, labels, folds(len(found), 5, 100))


def resnet50_pool() -> Pool:
    """128 images calibrate, 100 score; no labels, as the weights are random."""
    found, _ = pixels(IMAGES, "x", (224, 224), "imagenet")
    chosen = part(len(found), 128)
    rest = np.setdiff1d(np.arange(len(found)), chosen)
    return Pool({"x": found}, None, (Split(chosen, chosen, rest[part(len(rest), 100)]),))


def resnet50() -> Path:
    path = models("resnet50") / "resnet50.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        ResNet50().save(path)
    return path


SUBJECTS = (
    Subject("resnet20", "classes", lambda: SHARED / "cifar10-resnet" / "resnet20.onnx", cifar, quick=1000),
    Subject("resnet32", "classes", lambda: SHARED / "cifar10-resnet" / "resnet32.onnx", cifar, quick=1000),
    Subject(
        "mcunet",
        "classes",
        lambda: SHARED / "imagenet-models" / "mcunet-320kb-1mb.onnx",
        lambda: imagenet_folds("input", 176, "inception"),
    ),
    Subject(
        "squeezenet",
        "classes",
        lambda: SHARED / "imagenet-models" / "squeezenet1.1.onnx",
        lambda: imagenet_folds("data", 227, "imagenet-caffe"),
    ),
    Subject("resnet50", "logits", resnet50, resnet50_pool, quick=32),
)
