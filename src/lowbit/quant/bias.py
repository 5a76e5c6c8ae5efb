"""Bias correction: take back the mean of the error that quantization puts into a layer's output.

Quantized weights shift the mean of every output channel, which the next layers never see in the float model
(Nagel et al. 2019, arXiv 1906.04721, section 4.2; Finkelstein et al. 2019, arXiv 1906.03193). The mean of a linear
layer's error is linear in the mean of its inputs, so the correction is exact on the calibration data.
"""

from __future__ import annotations

import numpy as np

from lowbit.types import Array


def correction(weights: Array, quantized: Array, mean: Array, mean_seen: Array | None = None) -> Array:
    """What to add to a bias: E[W x] - E[W_q x_q].

    Args:
        weights: Float [..., O, K]; for a convolution see `layout.as_matrices`.
        quantized: The dequantized weights, same shape.
        mean: Of the layer's input rows in the float model, [..., K].
        mean_seen: Of the rows that the quantized layer sees, [..., K]; `mean` where None.

    Returns:
        float64 [..., O]; flattened, it is in the order of a convolution's output channels.
    """
    seen = mean if mean_seen is None else mean_seen
    exact = np.einsum("...ok,...k->...o", np.asarray(weights, np.float64), mean)
    return exact - np.einsum("...ok,...k->...o", np.asarray(quantized, np.float64), seen)
