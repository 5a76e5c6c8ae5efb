"""Pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator
from lowbit.train.operators.windows import window

_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("MaxPool")
def max_pool(given: Attributes, x: Tensor) -> Tensor:
    if given.outputs > 1 or x.ndim - 2 not in _MAXIMA:
        raise given.refuse("positions of the maxima are asked for, or it has more than 3 spatial axes")
    form = window(given, x.shape[2:], given.get("kernel_shape"))
    padded = F.pad(x, form.padding(), value=-torch.inf) if any(form.begin + form.end) else x
    return _MAXIMA[x.ndim - 2](padded, form.kernel, form.strides, 0, form.dilations)


@operator("AveragePool")
def average_pool(given: Attributes, x: Tensor) -> Tensor:
    """The mean of what lies in the input, or in its padding too, where the node says so."""
    form = window(given, x.shape[2:], given.get("kernel_shape"))
    if x.ndim - 2 not in _MEANS or any(step != 1 for step in form.dilations):
        raise given.refuse("its window is dilated, or it has more than 3 spatial axes")
    pool = _MEANS[x.ndim - 2]
    if not any(form.begin + form.end):
        return pool(x, form.kernel, form.strides)
    behind = [end - asked for end, asked in zip(form.end, form.asked, strict=True)]  # counts in no case
    counted = F.pad(torch.ones_like(x[:1, :1]), form.padding(form.asked), value=float(given.get("count_include_pad", 0)))
    counted = F.pad(counted, [size for end in reversed(behind) for size in (0, end)])
    return pool(F.pad(x, form.padding()), form.kernel, form.strides) / pool(counted, form.kernel, form.strides)


@operator("GlobalAveragePool")
def global_average_pool(_: Attributes, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_: Attributes, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)
