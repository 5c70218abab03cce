"""A gated FFN for the rows of a prompt: norm, padded GEMM, activation, padded GEMM. A plain function, no op.

The layout has removed the irregular axes, so the GEMMs are cuBLAS's: gate and up are one over [2 · width, hidden],
whose result :func:`gated_act` reads once. A Triton GEMM with the activation inside was slower (docs/kernels.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.gated_act import gated_act
from prunekit.kernels.ops.rms_norm import rms_norm
from prunekit.kernels.ops.utils.int8 import dequantize


def mlp_prefill(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """down(act(gate(norm(x))) · up(norm(x))) + residual for any number of rows; arguments as
    :func:`prunekit.kernels.ops.mlp.op.mlp`.

    int8 weights are converted at every call, into temporaries of the size of the weights in the dtype of ``x``: that
    costs as much as reading 16-bit weights twice, which many rows hide.
    """
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    both = F.linear(x, dequantize(gate_up, gate_up_scale, x.dtype).flatten(0, 1))
    hidden = gated_act(both, activation, None if gate_up_bias is None else gate_up_bias.flatten())
    down = dequantize(down, down_scale, x.dtype).T
    # One of the sums is made in the GEMM's epilogue.
    if down_bias is not None:
        out = torch.addmm(down_bias.to(x.dtype), hidden, down)
        return out if residual is None else residual + out
    return hidden @ down if residual is None else torch.addmm(residual, hidden, down)
