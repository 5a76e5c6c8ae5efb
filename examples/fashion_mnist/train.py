"""Train the demo model: a small residual network on Fashion-MNIST, exported to ONNX.

This is how `src/lowbit/demo/resnet_fashion.onnx` and `fashion_mnist.npz` were made.
It needs PyTorch (`pip install torch`) and the four IDX files of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist, MIT licence) in one folder:

    python examples/fashion_mnist/train.py --data FOLDER --out src/lowbit/demo

Ten epochs take about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = 0.2860, 0.3530  # of the training images, scaled to [0, 1]
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
DEMO_IMAGES = 5_000  # of the 10,000 test images: what fits beside the model in the package


def read_idx(path: Path) -> np.ndarray:
    """Reads one gzipped IDX file: uint8 images [N, 28, 28] or labels [N]."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">i4", count=dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a residual connection."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """Images [N, 1, 28, 28] -> logits [N, 10]."""

    def __init__(self, widths: tuple[int, ...] = (40, 80, 160), depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for index in range(depth):
                blocks.append(Block(channels, width, 2 if stage and index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random horizontal flips and shifts of up to two pixels."""
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(3), images)
    padded = F.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    return padded[:, :, dy : dy + 28, dx : dx + 28]


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return hits / len(labels)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int = 128) -> None:
    generator = torch.Generator().manual_seed(0)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}], lr=0.1, momentum=0.9, nesterov=True
    )
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.15, total_steps=steps, pct_start=0.2)
    started, step = time.monotonic(), 0
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(images), generator=generator)[: len(images) // batch * batch].split(batch):
            x = augment(images[rows], generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                left = (time.monotonic() - started) / step * (steps - step)
                print(f"epoch {epoch + 1}/{epochs}  step {step}/{steps}  loss {loss.item():.3f}  {left / 60:.1f} min left", flush=True)


def export(model: nn.Module, path: Path) -> None:
    model.eval().to(memory_format=torch.contiguous_format)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    program.save(str(path), external_data=False)
    forget_paths(path)


def forget_paths(path: Path) -> None:
    """Removes the stack traces that the exporter keeps beside every node: they name folders of this machine."""
    model = onnx.load(path)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    torch.manual_seed(0)
    arrays = {
        name: read_idx(options.data / f"{name}.gz")
        for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    }

    def tensor(images: np.ndarray) -> torch.Tensor:
        return ((torch.from_numpy(images.copy()).float() / 255 - MEAN) / STD)[:, None]

    test_images, test_labels = tensor(arrays["t10k-images-idx3-ubyte"]), torch.from_numpy(arrays["t10k-labels-idx1-ubyte"].astype(np.int64))
    model = FashionResNet().to(memory_format=torch.channels_last)
    train(
        model,
        tensor(arrays["train-images-idx3-ubyte"]),
        torch.from_numpy(arrays["train-labels-idx1-ubyte"].astype(np.int64)),
        options.epochs,
    )
    print(f"test accuracy {accuracy(model, test_images, test_labels):.4f} on {len(test_labels):,} images")

    options.out.mkdir(parents=True, exist_ok=True)
    export(model, options.out / "resnet_fashion.onnx")
    np.savez_compressed(
        options.out / "fashion_mnist.npz",
        images=arrays["t10k-images-idx3-ubyte"][:DEMO_IMAGES],
        labels=arrays["t10k-labels-idx1-ubyte"][:DEMO_IMAGES],
        classes=np.array(CLASSES),
    )


if __name__ == "__main__":
    main()
