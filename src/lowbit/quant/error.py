"""How much noise quantization left in a tensor."""

from __future__ import annotations

import numpy as np

from lowbit.errors import UsageError
from lowbit.types import Array


def sqnr(reference: Array, noisy: Array) -> float:
    """Signal-to-quantization-noise ratio, 10 log10(sum of squares / sum of squared differences).

    Six decibels are one bit; 20 dB is an error of a tenth of the signal, 40 dB of a hundredth.

    Args:
        reference: [...].
        noisy: Same shape.

    Returns:
        Decibels; inf where nothing differs, -inf where the reference is zero and the other is not, NaN where either holds one.

    Raises:
        UsageError: shapes that differ.
    """
    if np.shape(reference) != np.shape(noisy):
        raise UsageError(f"A signal of shape {np.shape(reference)} cannot be compared with one of shape {np.shape(noisy)}.")
    exact = np.asarray(reference, np.float64)
    noise = float(np.sum((np.asarray(noisy, np.float64) - exact) ** 2))
    signal = float(np.sum(exact**2))
    if noise == 0.0:
        return float("inf")
    with np.errstate(divide="ignore"):
        return float(10 * (np.log10(signal) - np.log10(noise)))
