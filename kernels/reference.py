"""The specification: what every op computes, in float64 and as plainly as it can be written.

Each function has the name and the arguments of its op and returns float64. Slow on purpose; used by tests and by the
GPU check.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    x = x.double()
    if weight is None:
        return x
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A weight whose rows (second axis from the end) have one scale each."""
    return weight.double() if scale is None else weight.double() * scale.double()[..., None]


def linear_decode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    """norm(x) Wᵀ + bias + residual, with W = weight · scale by row; [rows, n]."""
    out = _norm(x, norm_weight, eps) @ _scaled(weight, scale).T
    if bias is not None:
        out = out + bias.double()
    return out if residual is None else out + residual.double()
