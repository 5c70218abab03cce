"""The KV cache of a decode: allocated once, every layer with as many KV heads as it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, each [batch, num_key_value_heads, capacity, head_dim]."""

    key: torch.Tensor
    value: torch.Tensor


class KVCache:
    """One piece of memory, cut into the caches of layers that may differ in their number of KV heads.

    Layers that differ can't share one stacked tensor; cut from one arena, they are still allocated and freed at once.
    ``arena`` is memory to be used again, of the same dtype and large enough; without it new memory is taken.
    """

    def __init__(
        self,
        num_key_value_heads: Sequence[int],
        head_dim: int,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        arena: torch.Tensor | None = None,
    ):
        sizes = [batch * heads * capacity * head_dim for heads in num_key_value_heads]
        if arena is None:
            # Zeros, not whatever was there: places that no token has filled are masked, but not every library's
            # attention survives a NaN under its mask.
            arena = torch.zeros(2 * sum(sizes), dtype=dtype, device=device)
        self.arena = arena
        self.layers: list[LayerCache] = []
        begin = 0
        for heads, size in zip(num_key_value_heads, sizes, strict=True):
            key, value = (
                self.arena[start : start + size].view(batch, heads, capacity, head_dim)
                for start in (begin, begin + size)
            )
            self.layers.append(LayerCache(key, value))
            begin += 2 * size
