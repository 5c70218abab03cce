"""How a KV cache lies in memory, as kernels are told."""

from __future__ import annotations

import torch


def cache_strides(k_cache: torch.Tensor, v_cache: torch.Tensor) -> dict[str, int]:
    """The strides of caches [batch, KV heads, tokens, head_dim], in elements, by the names of kernels' parameters."""
    return {
        f"{name}_{axis}_stride": cache.stride(place)
        for name, cache in (("k", k_cache), ("v", v_cache))
        for place, axis in enumerate(("batch", "head", "token"))
    }
