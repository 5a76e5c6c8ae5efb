"""Normalisation; statistics are those of inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.train.operators.table import Attributes, operator


@operator("BatchNormalization")
def batch_normalization(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if given.outputs > 1:
        raise given.refuse("it is in training mode")
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=given.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=given.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(given: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over all axes from `axis` on; scale and bias may have fewer axes than that."""
    if given.outputs > 1:
        raise given.refuse("mean and deviation are asked for")
    shape = x.shape[given.get("axis", -1) % x.ndim :]
    normal = F.layer_norm(x, shape, eps=given.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(given: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    if given.outputs > 1:
        raise given.refuse("the deviation is asked for")
    axes = list(range(given.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + given.get("epsilon", 1e-5)) * scale


@operator("LpNormalization")
def lp_normalization(given: Attributes, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, given.get("p", 2), dim=given.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)
