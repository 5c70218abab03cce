"""A causal LM with a KV cache of fixed length inside, for runtimes that plan all memory beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.export.formats.pytorch.forward import AttentionMasks
from prunekit.models.families import Family
from prunekit.plan.shape import ModelShape

_ATTENTION = "prunekit_slots"


class _Slots:
    """What a transformers model takes for a cache: new keys and values go to their slots, and all slots come back.

    Keys lie as [K_i, head_dim, slots], so that the product with a query needs no transposed copy of them.
    """

    is_compileable = True

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], places: torch.Tensor):
        self._keys, self._values, self._places = keys, values, places

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._keys[layer].index_copy_(2, self._places, keys[0].transpose(1, 2))
        self._values[layer].index_copy_(1, self._places, values[0])
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return 0


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of ``query`` [1, H, S, head_dim] to all slots as :class:`_Slots` returns them → [1, S, H, head_dim].

    The query heads that share a KV head are rows of one product: repeating the cache for each would copy it.
    """
    _, heads, length, size = query.shape
    kv_heads, _, slots = key.shape
    group = heads // kv_heads
    # Copies made explicit: views of permuted tensors become conditions on the length when this is exported.
    rows = (query * scaling).clone(memory_format=torch.contiguous_format).view(kv_heads, group * length, size)
    scores = torch.bmm(rows, key).view(kv_heads, group, length, slots)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = (scores + attention_mask).softmax(-1).view(kv_heads, group * length, slots)
    mixed = torch.bmm(weights, value).view(kv_heads, group, length, size).permute(2, 0, 1, 3)
    return mixed.clone(memory_format=torch.contiguous_format).view(1, length, heads, size), None


class StaticForward(nn.Module):
    """``model`` with a KV cache of ``slots`` positions inside. Changes the model's attention for good: give it one of
    your own.

    forward(input_ids int64 [1, S], cache_position int64 [S]) → logits [1, S, V]. The positions are where these tokens
    go in the cache, rising from 0; slots behind them are not looked at, so that 0 begins a new text.
    """

    def __init__(self, model: Any, family: Family, shape: ModelShape, slots: int):
        from transformers import AttentionInterface

        super().__init__()
        AttentionInterface.register(_ATTENTION, _attention)
        model.config._attn_implementation = _ATTENTION
        self.model = model
        self.slots = slots
        self._masks = AttentionMasks(family, model.config)
        self._layers = len(shape.layers)
        for index, layer in enumerate(shape.layers):
            heads = layer.num_key_value_heads
            for name, size in (("key", (heads, shape.head_dim, slots)), ("value", (heads, slots, shape.head_dim))):
                self.register_buffer(f"{name}_{index}", torch.zeros(size, dtype=model.dtype), persistent=False)

    def forward(self, input_ids: torch.Tensor, cache_position: torch.Tensor) -> torch.Tensor:
        keys = [getattr(self, f"key_{index}") for index in range(self._layers)]
        values = [getattr(self, f"value_{index}") for index in range(self._layers)]
        return self.model(
            input_ids=input_ids,
            attention_mask=self._masks(cache_position, torch.arange(self.slots), None, self.model.dtype),
            position_ids=cache_position[None],
            past_key_values=_Slots(keys, values, cache_position),
            use_cache=True,
        ).logits
