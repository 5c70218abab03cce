"""A gated FFN for the rows of a prompt: norm, padded GEMM, activation, padded GEMM. Plain functions, no op.

The layout has removed the irregular axes, so the GEMMs are cuBLAS's unless the table says otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.gated_act import gated_act
from prunekit.kernels.ops.mlp.gate_up_gemm import gate_up_gemm
from prunekit.kernels.ops.rms_norm import rms_norm
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import choose
from prunekit.kernels.ops.utils.int8 import dequantize


def gate_up(x: torch.Tensor, weight: torch.Tensor, activation: str, bias: torch.Tensor | None = None) -> torch.Tensor:
    """act(x gateᵀ + bias) · (x upᵀ + bias) by the provider that the table names: cuBLAS and :func:`gated_act`, or
    our GEMM. ``x`` [rows, hidden], ``weight`` [2, width, hidden]; [rows, width]."""
    _, width, hidden = weight.shape
    provider = choose("gate_up", x.device, dtype=x.dtype, rows=x.shape[0], width=width, hidden=hidden)
    if provider == "triton" and why_not_triton(x.device, x.dtype, dot=True) is None:
        return gate_up_gemm(x, weight, activation, bias)
    return gated_act(F.linear(x, weight.flatten(0, 1)), activation, None if bias is None else bias.flatten())


def mlp_prefill(
    x: torch.Tensor,
    gate_up_weight: torch.Tensor,
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
    hidden = gate_up(x, dequantize(gate_up_weight, gate_up_scale, x.dtype), activation, gate_up_bias)
    down = dequantize(down, down_scale, x.dtype).T
    # One of the sums is made in the GEMM's epilogue.
    if down_bias is not None:
        out = torch.addmm(down_bias.to(x.dtype), hidden, down)
        return out if residual is None else residual + out
    return hidden @ down if residual is None else torch.addmm(residual, hidden, down)
