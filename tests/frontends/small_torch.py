"""Small PyTorch modules: one that works, and one for every way in which one does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut that is padded with zero channels (He et al. 2015, option A)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.padding = stride, (outside - inside) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + x)


class ResNet20(nn.Module):
    """CIFAR's ResNet-20 with the parameter names of the usual checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inside = 16
        for index, outside in enumerate((16, 32, 64), 1):
            blocks = []
            for number in range(3):
                blocks.append(Block(inside, outside, 2 if index > 1 and number == 0 else 1))
                inside = outside
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Net(nn.Module):
    """A small classifier of 3 x 8 x 8 images with dropout and batch normalization."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(functional.relu(self.norm(self.conv(x))).mean((2, 3))))


class Tagger(nn.Module):
    """Token ids and a mask to two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        vectors = self.table(ids) * mask[:, :, None]
        return {"tags": self.head(vectors), "pooled": vectors.mean(1)}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class OneSample(nn.Module):
    """Fixes its batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 6) * 2


class Noisy(nn.Module):
    """Answers differently every time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Evil:
    """Pickled, it would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def seeded(module: type[nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    return module(*args)
