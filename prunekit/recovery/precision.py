"""What products are computed in while weights, sums and the optimizer stay in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from prunekit.utils.numerics.bf16 import fast_products, has_fast_products


def precision(device: torch.device, dtype: str) -> tuple[str, Callable[[], AbstractContextManager[Any]]]:
    """Its name, and a context to compute in. ``dtype`` is float32, bfloat16, or auto: bfloat16 on GPUs that have it
    and on CPUs made for it, where it was seen to be faster; elsewhere its products are many times slower."""
    if dtype == "bfloat16" or (dtype == "auto" and _is_fast(device)):
        if device.type == "cpu" and has_fast_products(device):
            return "bfloat16", lambda: fast_products(device)
        return "bfloat16", lambda: torch.autocast(device.type, torch.bfloat16)
    return "float32", nullcontext


def _is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_fast_products(device)
