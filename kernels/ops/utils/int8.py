"""Weights in 8 bits: one scale for each output feature.

A scale for each neuron of the down projection would be worse: a few neurons have both large activations and an outlying
weight, whose step then blurs all that they add (KL divergence on SmolLM2-135M: 0.031 instead of 0.003).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from prunekit.errors import PrunekitError
from prunekit.kernels.ops.utils.layout import PackedFFN

# Elements converted at a time: a vocabulary's weight has no room for a float32 copy beside it.
_CHUNK = 1 << 24
_LEAST = 127 * torch.finfo(torch.float32).tiny


class QuantizedFFN(NamedTuple):
    """``gate_up`` int8 [2, Fp, hidden] with ``gate_up_scale`` [2, Fp], ``down`` int8 [hidden, Fp] with ``down_scale``
    [hidden]; scales are float32."""

    gate_up: torch.Tensor
    gate_up_scale: torch.Tensor
    down: torch.Tensor
    down_scale: torch.Tensor


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [..., k], scale float32 [...]) of ``weight`` [..., k]: symmetric, scale = max |row| / 127.

    Off by at most scale / 2 an element. Rows of zeros (pads) stay zeros, with scale 1. Raises PrunekitError where a
    weight is NaN or infinite.
    """
    flat = weight.detach().reshape(-1, weight.shape[-1])
    rounded = torch.empty(flat.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(flat), dtype=torch.float32, device=weight.device)
    rows = max(1, _CHUNK // max(1, flat.shape[1]))
    for first in range(0, len(flat), rows):
        part = slice(first, first + rows)
        values = flat[part].float()
        most = values.abs().amax(-1)
        check_finite(most, weight.shape)
        # Below it, the scale would no longer be a normal number.
        scale[part] = torch.where(most > _LEAST, most / 127, 1.0)
        rounded[part] = (values / scale[part, None]).round_().clamp_(-127, 127).to(torch.int8)
    return rounded.view(weight.shape), scale.view(weight.shape[:-1])


def quantize_ffn(packed: PackedFFN) -> QuantizedFFN:
    """The matrices of a packed FFN in 8 bits; its biases stay what they are."""
    return QuantizedFFN(*quantize_rows(packed.gate_up), *quantize_rows(packed.down))


def dequantize(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """``weight`` [..., k] as a GEMM reads it: itself, or for int8 a temporary copy in ``dtype``, times ``scale`` [...].

    Scaled before the product, since Σ x · int8 can leave float16's range.
    """
    if scale is None:
        return weight
    out = torch.empty_like(weight, dtype=dtype)
    return torch.mul(weight, scale[..., None], out=out)


def check_finite(values: torch.Tensor, shape: torch.Size) -> None:
    """Raises PrunekitError where one of the values (of a weight of this shape) is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise PrunekitError(
            f"A weight of shape {tuple(shape)} holds NaN or infinity, which no number of bits can hold; "
            "repair the checkpoint, or keep its weights unquantised."
        )
