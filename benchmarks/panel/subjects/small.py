"""Two small CNNs that nothing was tuned to, trained here on Fashion-MNIST: no residuals, depthwise, LeakyReLU or SiLU.

    python -m panel.subjects.small          trains both (two minutes each, on one core) into build/panel/models

Needs PyTorch. Batch normalisation is folded by the exporter of the panel, as by any other.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from panel.paths import SHARED, models
from panel.pool import Array, Pool, Split
from panel.subject import Subject

MEAN, STD = 0.2860, 0.3530
DATA = SHARED / "fashion-mnist"
EPOCHS, BATCH = 4, 128


def idx(name: str) -> Array:
    """One gzipped IDX file: uint8 images [n, 28, 28] or labels [n]."""
    raw = gzip.decompress((DATA / name).read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def images(name: str) -> Array:
    """[n, 1, 28, 28], standardised."""
    return ((idx(name).astype(np.float32) / 255 - MEAN) / STD)[:, None]


def pool() -> Pool:
    train, test = images("train-images-idx3-ubyte.gz"), images("t10k-images-idx3-ubyte.gz")
    chosen = np.random.default_rng(0).permutation(len(train))[:1300]
    labels = np.concatenate([idx("train-labels-idx1-ubyte.gz")[chosen], idx("t10k-labels-idx1-ubyte.gz")]).astype(np.int64)
    rows = np.arange(len(labels))
    return Pool({"image": np.concatenate([train[chosen], test])}, labels, (Split(rows[:300], rows[300:1300], rows[1300:]),))


def separable(channels: int, out: int, stride: int, act: Any) -> list[Any]:
    """Depthwise 3x3, pointwise 1x1, each with batch norm and activation."""
    from torch import nn

    depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [depthwise, nn.BatchNorm2d(channels), act(), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), act()]


def network(name: str) -> Any:
    """`leaky`: separable convolutions with LeakyReLU; `swish`: plain and separable ones with SiLU and max-pooling."""
    from torch import nn

    def leaky() -> Any:
        return nn.LeakyReLU(0.1)

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if name == "leaky":
        layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), leaky()]
        for channels, out, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
            layers += separable(channels, out, stride, leaky)
        return nn.Sequential(*layers, *head, nn.Linear(128, 10))
    layers = [nn.Conv2d(1, 24, 5, 2, 2), nn.SiLU(), *separable(24, 48, 1, nn.SiLU), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(48, 64, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(64), nn.SiLU(), *separable(64, 96, 2, nn.SiLU)]
    return nn.Sequential(*layers, *head, nn.Linear(96, 32), nn.SiLU(), nn.Linear(32, 10))


def train(name: str, folder: Path) -> Any:
    """Adam with a one-cycle rate; always the same seed and order."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    torch.set_num_threads(1)  # same weights whatever the machine; and threads that wait for each other crawl on a busy one
    x = torch.from_numpy(images("train-images-idx3-ubyte.gz"))
    y = torch.from_numpy(idx("train-labels-idx1-ubyte.gz").astype(np.int64))
    net = network(name)
    optimizer = torch.optim.Adam(net.parameters())
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    net.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "weights.pt")
    return net.eval()


def model(name: str) -> Path:
    path = models(f"fashion-{name}") / f"fashion-{name}.onnx"
    if not path.exists():
        import torch

        net = train(name, path.parent)
        axes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        program = torch.onnx.export(
            net,
            (torch.zeros(2, 1, 28, 28),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=axes,
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        program.save(str(path), external_data=False)
    return path


def subject(name: str) -> Subject:
    return Subject(f"fashion-{name}", "classes", lambda: model(name), pool, quick=1000)


SUBJECTS = (subject("leaky"), subject("swish"))


def main(names: Sequence[str] = ("leaky", "swish")) -> None:
    for name in names:
        print(model(name))


if __name__ == "__main__":
    main()
