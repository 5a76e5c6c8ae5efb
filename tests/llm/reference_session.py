"""The torch reference of a folder as a session: slow, and right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class ReferenceSession:
    precision = "f32"

    def __init__(self, folder: Path) -> None:
        from lowbit.llm.folder import SourceFolder
        from lowbit.llm.forward import Reference

        self._model = Reference(SourceFolder.open(folder))
        self.vocabulary, self.context = self._model.decoder.vocabulary, self._model.decoder.positions
        self._tokens: list[int] = []

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self._model.logits(np.asarray(tokens)).numpy()

    def start(self, tokens: Sequence[int]) -> np.ndarray:
        self._tokens = list(tokens)
        return self.logits(self._tokens)[-1]

    def step(self, token: int) -> np.ndarray:
        return self.start([*self._tokens, token])

    def close(self) -> None:
        pass
