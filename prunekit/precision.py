"""Which products may be computed in bfloat16 without anyone having asked for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def fast_products(device: Any, wanted: bool = True) -> AbstractContextManager[Any]:
    """A context in which matrix products of float32 models are computed in bfloat16 on CPUs made for it (AVX-512 BF16
    or AMX), where that is about twice as fast; weights and sums stay in float32. Elsewhere, or where it is not
    ``wanted``, it changes nothing. Only for hidden states that are averaged over thousands of tokens afterwards:
    moments and solutions stay exact.
    """
    import torch

    return torch.autocast("cpu", torch.bfloat16) if wanted and has_fast_products(device) else nullcontext()


def has_fast_products(device: Any) -> bool:
    """Whether :func:`fast_products` changes anything there."""
    import torch

    if torch.device(device).type != "cpu":
        return False
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(has() for has in known if has)
