"""Samples to train on: kept in memory, a part held out to judge by, the rest shuffled and varied anew every epoch.

Distillation needs no labels, so what it is fed need not be a real sample: mirrored, shifted and blended images ask the teacher
questions that the few real ones do not (mixup: Zhang et al. 2018, arXiv 1710.09412; for distillation: Beyer et al. 2022, arXiv
2106.05237). Token ids cannot be blended and are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowbit.errors import DataError
from lowbit.types import Array, Feeds

LEAST = 32
"""Samples below which there is nothing to learn from: with a tenth held out three would judge."""

SHIFT = 0.1
"""Most that an image is moved, as a share of its height and width."""

BLENDED = 0.5
"""Share of the batches that are blended."""


@dataclass(frozen=True)
class Pool:
    """All samples.

    Attributes:
        feeds: Input name -> [N, ...], preprocessed.
        labels: [N, ...]; None where there are none.
        images: The inputs are images [N, C, H, W] and may be mirrored, shifted and blended.
    """

    feeds: Feeds
    labels: Array | None = None
    images: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def take(self, rows: Array) -> Pool:
        """Some of the samples, in the order of `rows`."""
        labels = None if self.labels is None else self.labels[rows]
        return Pool({name: values[rows] for name, values in self.feeds.items()}, labels, self.images)

    def held_out(self, share: float, seed: int) -> tuple[Pool, Pool]:
        """Samples to train on, and samples to judge by.

        Raises:
            DataError: too few samples.
        """
        if len(self) < LEAST:
            raise DataError(
                f"{len(self)} samples are too few to train on: {LEAST} are the least.",
                "Give more samples (labels are not needed), a few hundred.",
            )
        order = np.random.default_rng(seed).permutation(len(self))
        judging = max(LEAST // 4, round(share * len(self)))
        return self.take(np.sort(order[judging:])), self.take(np.sort(order[:judging]))

    def batches(self, size: int) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """In order, as they are."""
        for start in range(0, len(self), size):
            yield self._batch(np.arange(start, min(start + size, len(self))))

    def epoch(self, size: int, seed: int, *, vary: bool) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """In a random order, varied where they are images; what does not fill a batch waits for another epoch.

        Args:
            size: Samples of a batch.
            seed: Same seed, same epoch.
            vary: Mirror, shift and blend images. With labels they are not blended.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        count = max(len(self) // size, 1)
        for rows in np.array_split(order[: count * size], count):
            feeds, labels = self._batch(rows)
            yield (_varied(feeds, rng, blend=labels is None) if vary and self.images else feeds), labels

    def _batch(self, rows: Array) -> tuple[dict[str, Tensor], Tensor | None]:
        feeds = {name: torch.from_numpy(np.ascontiguousarray(values[rows])) for name, values in self.feeds.items()}
        return feeds, None if self.labels is None else torch.from_numpy(np.ascontiguousarray(self.labels[rows]))


def _varied(feeds: dict[str, Tensor], rng: np.random.Generator, *, blend: bool) -> dict[str, Tensor]:
    """Every image mirrored or not and shifted; in some batches each is blended with another."""
    found = {name: _moved(values, rng) for name, values in feeds.items()}
    if blend and rng.random() < BLENDED:
        count = len(next(iter(found.values())))
        share = torch.from_numpy(rng.uniform(0.5, 1.0, (count, 1, 1, 1)).astype(np.float32))
        other = torch.from_numpy(rng.permutation(count))
        found = {name: share * values + (1 - share) * values[other] for name, values in found.items()}
    return found


def _moved(images: Tensor, rng: np.random.Generator) -> Tensor:
    height, width = images.shape[2:]
    padded = [max(1, round(SHIFT * height)), max(1, round(SHIFT * width))]
    wide = torch.nn.functional.pad(images, (padded[1], padded[1], padded[0], padded[0]), mode="replicate")
    moved = torch.empty_like(images)
    for index in range(len(images)):
        top, left = rng.integers(0, 2 * padded[0] + 1), rng.integers(0, 2 * padded[1] + 1)
        image = wide[index, :, top : top + height, left : left + width]
        moved[index] = image.flip(2) if rng.random() < 0.5 else image
    return moved
