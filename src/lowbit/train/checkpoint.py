"""Where training stands, on disk: written whole or not at all, read without running code that may be in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lowbit.errors import DataError


@dataclass(frozen=True)
class Epoch:
    """What one epoch has shown.

    Attributes:
        number: From 1; 0 is the student before training.
        train_loss: Mean over its batches, hints included; None before training.
        held_out_loss: Of the outputs, on samples that are not trained on.
        seconds: It took.
    """

    number: int
    train_loss: float | None
    held_out_loss: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """All that training needs to go on.

    Attributes:
        key: Of what is trained, on what, and how: another key means another training.
        history: Epochs so far.
        best: Parameters of the best epoch.
        mean: Parameters on average over about the last one.
        latest: Parameters at its end.
        optimizer: Its state.
        factors: Of the hints.
    """

    key: str
    history: tuple[Epoch, ...]
    best: Mapping[str, torch.Tensor]
    mean: Mapping[str, torch.Tensor]
    latest: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    factors: Mapping[str, torch.Tensor]

    def save(self, path: Path) -> None:
        """Replaces what was there at once: a kill in the middle leaves the former epoch."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.tmp")
        parts = {name: getattr(self, name) for name in ("key", "best", "mean", "latest", "optimizer", "factors")}
        with unfinished.open("wb") as file:
            torch.save({**parts, "history": [asdict(epoch) for epoch in self.history]}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path, key: str) -> Progress | None:
        """What was saved; None where there is nothing, or where it belongs to another training.

        Raises:
            DataError: the file cannot be read.
        """
        if not path.exists():
            return None
        try:
            found = torch.load(path, weights_only=True)
            if found["key"] != key:
                return None
            history = tuple(Epoch(**epoch) for epoch in found["history"])
            return cls(key, history, *(found[name] for name in ("best", "mean", "latest", "optimizer", "factors")))
        except Exception as error:  # torch raises whatever the reader of its file format did
            raise DataError(f"The checkpoint '{path.name}' cannot be read: {error}", "Remove it; training then starts anew.") from error
