"""A model of transformers with a flat KV cache: what graphs are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache


class CachedForward(nn.Module):
    """``model`` with a flat KV cache. Sliding windows are a matter of the mask: the cache keeps every position.

    forward(input_ids int64 [B, S], attention_mask int64 [B, P + S], position_ids int64 [B, S],
    *past: key_0, value_0, key_1, …, each [B, K_i, P, head_dim]) →
    (logits [B, S, V], present_key_0, present_value_0, …, each [B, K_i, P + S, head_dim]). P may be 0.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for index in range(len(past) // 2):
            cache.update(past[2 * index], past[2 * index + 1], index)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers: Any = cache.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))
