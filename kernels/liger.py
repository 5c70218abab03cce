"""Liger's kernels as providers of our ops, where the package ``liger-kernel`` is installed and the table names them.

Read against liger-kernel 0.8.5. Nothing is imported before the first use. What to know before choosing them:

- Its activation kernels take the width as a compile-time constant and its GEMM tunes itself anew for every width and
  every bucket of rows, so that a model of irregular layers compiles, and for the GEMM measures, once a layer.
- Its GEMM reads through tensor descriptors: compute capability 9.0 or newer. Only SiLU, no bias.
- There is no GELU over a buffer that holds gate and up side by side, so GELU is not offered.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch

_PLACES = {
    "rms_norm": ("liger_kernel.ops.rms_norm", "LigerRMSNormFunction"),
    "add_rms_norm": ("liger_kernel.ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction"),
    "gated_act": ("liger_kernel.ops.swiglu", "LigerFusedGateUpSiLUMulFunction"),
    "gate_up": ("liger_kernel.ops.mlp", "gemm_swiglu"),
}


@lru_cache
def why_not(op: str) -> str | None:
    """Why Liger can't compute ``op`` here, as a clause for a sentence; None where it can."""
    if op not in _PLACES:
        return f"Liger has no {op}"
    if not torch.cuda.is_available():
        return "Liger's kernels need a GPU"
    module, name = _PLACES[op]
    try:
        getattr(import_module(module), name)
    except ImportError as error:
        return f"liger-kernel can't be imported ({error}); pip install liger-kernel"
    except AttributeError:
        return f"this liger-kernel has no {name}; pip install --upgrade liger-kernel"
    # A package of kernels looks at the GPU and at Triton while it is imported, and can fail in any way there.
    except Exception as error:
        return f"liger-kernel fails when imported ({type(error).__name__}: {error})"
    return None


def why_not_gated_act(activation: str, bias: torch.Tensor | None) -> str | None:
    """The same for one call of ``gated_act``."""
    if activation != "silu" or bias is not None:
        return "Liger's activation over a fused buffer is SiLU without bias"
    return why_not("gated_act")


def why_not_gate_up(x: torch.Tensor, activation: str, bias: torch.Tensor | None) -> str | None:
    """The same for one call of the product of gate and up."""
    if activation != "silu" or bias is not None:
        return "Liger's fused MLP is SiLU without bias"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return "Liger's fused MLP reads through tensor descriptors, which need compute capability 9.0"
    return why_not("gate_up")


def _get(op: str) -> Any:
    module, name = _PLACES[op]
    return getattr(import_module(module), name)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """norm(x) · weight, all in float32 ("gemma") and not in place."""
    with torch.cuda.device_of(x):
        return _get("rms_norm").apply(x, weight, eps, 0.0, "gemma", False)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(x + residual), x + residual)."""
    with torch.cuda.device_of(x):
        return _get("add_rms_norm").apply(x, residual, weight, eps, 0.0, "gemma", False)


def gated_act(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up for gate and up side by side, [rows, 2 · width] → [rows, width]."""
    with torch.cuda.device_of(gate_up):
        return _get("gated_act").apply(gate_up)


def gate_up(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """silu(x gateᵀ) · (x upᵀ) for ``weight`` [2, width, hidden]; [rows, width]."""
    with torch.cuda.device_of(x):
        out, _ = _get("gate_up")(x.unsqueeze(0), weight[0], weight[1], 1.0, store_preact=False)
        return out.squeeze(0)
