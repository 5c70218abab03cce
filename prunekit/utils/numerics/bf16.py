"""Which products may be computed in bfloat16 without anyone having asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def fast_products(device: Any, wanted: bool = True) -> AbstractContextManager[Any]:
    """A context in which matrix products of float32 models are computed in bfloat16 on CPUs made for it (AVX-512 BF16
    or AMX), where that is about twice as fast; weights and sums stay in float32. Elsewhere, or where it is not
    ``wanted``, it changes nothing. Only for hidden states that are averaged over thousands of tokens afterwards:
    moments and solutions stay exact.
    """
    import torch

    return torch.autocast("cpu", torch.bfloat16) if wanted and has_fast_products(device) else nullcontext()


@contextmanager
def fast_sums(device: Any, wanted: bool = True) -> Iterator[None]:
    """A context in which float32 matrix products round their factors to bfloat16, and neither sums nor results, on the
    CPUs and where :func:`fast_products` applies and oneDNN takes it up (with AMX; not with AVX-512 BF16 alone). For
    second moments of what came out of such products: rounding adds noise of about 1e-6 of their diagonal, far below any
    ridge."""
    import torch

    # PyTorch's name of the setting is a year old.
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None or not wanted or not has_fast_products(device):
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def has_fast_products(device: Any) -> bool:
    """Whether :func:`fast_products` changes anything there."""
    import torch

    if torch.device(device).type != "cpu":
        return False
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(has() for has in known if has)
