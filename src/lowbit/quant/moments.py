"""First and second moments of a layer's inputs: all that rounding, clipping and bias correction need of the data.

The squared error of a matrix product over all inputs is a quadratic form in the weights' error, with the second moment
as its matrix: sum |E x|^2 = tr(E X^T X E^T). So inputs are streamed once, in any chunks, and then forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.errors import UsageError
from lowbit.types import Array


@dataclass(frozen=True)
class Moments:
    """Sums over rows of the float input x and of the input x^ that the quantized layer will see.

    Groups, where there are any, come first in every array: a depthwise layer is a stack of small problems.

    Attributes:
        count: Rows.
        gram: Sum of x^ x^T, float32 [..., K, K].
        cross: Sum of x x^T (x from the float model), float32 [..., K, K]; None where both inputs are the same.
        total: Sum of x, float64 [..., K].
        total_seen: Sum of x^, float64 [..., K].
    """

    count: int
    gram: Array
    cross: Array | None
    total: Array
    total_seen: Array

    @classmethod
    def of(cls, rows: Array, seen: Array | None = None) -> Moments:
        """Of input rows [R, K], or [R, g, K] for g groups; `seen` are the same rows as the quantized model has them.

        Raises:
            UsageError: no rows, or shapes that differ.
        """
        if rows.ndim < 2 or not rows.size or (seen is not None and seen.shape != rows.shape):
            raise UsageError(
                f"Moments need rows [R, K], the same in both models; found {rows.shape}{'' if seen is None else f' and {seen.shape}'}."
            )
        exact = np.moveaxis(np.asarray(rows, np.float32), 0, -2)  # [..., R, K]
        noisy = exact if seen is None else np.moveaxis(np.asarray(seen, np.float32), 0, -2)
        turned = np.swapaxes(exact, -1, -2)
        cross = None if seen is None else turned @ noisy
        sums = [part.sum(axis=-2, dtype=np.float64) for part in (exact, noisy)]
        return cls(len(rows), np.swapaxes(noisy, -1, -2) @ noisy, cross, *sums)

    def merge(self, other: Moments) -> Moments:
        """Of the rows of both.

        Raises:
            UsageError: one of them knows both inputs and the other does not.
        """
        if (self.cross is None) != (other.cross is None):
            raise UsageError("Moments with and without the quantized model's inputs cannot be merged.")
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        sums = (self.total + other.total, self.total_seen + other.total_seen)
        return Moments(self.count + other.count, self.gram + other.gram, cross, *sums)

    @property
    def mean(self) -> Array:
        """Of x, float64 [..., K]."""
        return self.total / self.count

    @property
    def mean_seen(self) -> Array:
        """Of x^, float64 [..., K]."""
        return self.total_seen / self.count

    def centred(self) -> Moments:
        """About the means: the right objective where bias correction takes up the mean of the error afterwards."""

        def outer(a: Array, b: Array) -> Array:
            return a[..., :, None] * b[..., None, :] / self.count

        gram = (self.gram - outer(self.total_seen, self.total_seen)).astype(np.float32)
        cross = None if self.cross is None else (self.cross - outer(self.total, self.total_seen)).astype(np.float32)
        return Moments(self.count, gram, cross, np.zeros_like(self.total), np.zeros_like(self.total_seen))
