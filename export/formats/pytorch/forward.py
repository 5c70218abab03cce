"""A causal LM as PyTorch's own formats hold it: tensors in, tensors out, its masks spelled out, a choice of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from prunekit.models.families import Family
from prunekit.plan.shape import ModelShape

# These ask for no mask by kind of layer, and heed ``sliding_window``. The others ignore such a field.
_WINDOW_IN_ALL_LAYERS = ("mistral", "phi3")

Masks = torch.Tensor | dict[str, torch.Tensor]


class AttentionMasks:
    """The additive masks of a model, made of tensor operations alone.

    transformers decides by the values and lengths of what it is given whether it needs a mask at all. A graph can't
    decide, and lengths that are compared while it is recorded become conditions on every later input.
    """

    def __init__(self, family: Family, config: Any):
        # These models ask for a mask by the kind of layer, the others for one mask of all layers.
        self._by_kind = "layer_types" in family.per_layer_fields
        window = getattr(config, "sliding_window", None)
        if not self._by_kind and family.model_type not in _WINDOW_IN_ALL_LAYERS:
            window = None
        if self._by_kind:
            kinds = set(config.layer_types)
            self._windows = {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
        else:
            self._windows = {"all": window}

    def __call__(self, query: torch.Tensor, key: torch.Tensor, seen: torch.Tensor | None, dtype: torch.dtype) -> Masks:
        """What ``model(attention_mask=…)`` takes: [B or 1, 1, S, T] of ``dtype``, by kind of layer where it wants that.

        ``query`` int64 [S] and ``key`` int64 [T] are places in the cache; ``seen`` int64 [B, T] is 0 where nobody may
        look (padding), None where there is none.
        """
        distance = query[:, None] - key[None, :]
        made = {}
        for kind, window in self._windows.items():
            allowed = distance >= 0
            if window is not None:
                allowed = allowed & (distance < window)
            allowed = allowed[None, None]
            if seen is not None:
                allowed = allowed & (seen[:, None, None, :] != 0)
            made[kind] = torch.zeros((), dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        return made if self._by_kind else made["all"]


class TorchForward(nn.Module):
    """``model`` with a flat KV cache. Sliding windows are a matter of the mask: the cache keeps every position.

    forward(input_ids int64 [B, S], attention_mask int64 [B, P + S], position_ids int64 [B, S], logits_at int64 [N],
    *past: key_0, value_0, key_1, …, each [B, K_i, P, head_dim]) →
    (logits [B, N, V] of the positions ``logits_at`` of these S, present_key_0, present_value_0, …, each
    [B, K_i, P + S, head_dim]). P may be 0.
    """

    def __init__(self, model: Any, family: Family):
        super().__init__()
        self.model = model
        self._masks = AttentionMasks(family, model.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_at: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        before, length = past[0].shape[2], input_ids.shape[1]
        places = torch.arange(before + length)
        # Not the mask as it is: that its length is P + S would become a condition, and with it P + S >= 4.
        seen = attention_mask.index_select(1, places)
        cache = DynamicCache()
        for index in range(len(past) // 2):
            cache.update(past[2 * index], past[2 * index + 1], index)
        out = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(places[before:], places, seen, past[0].dtype),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_at,
        )
        layers: Any = cache.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def example_inputs(
    shape: ModelShape, *, batch: int, length: int, past: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    """Arguments for a cached forward pass: ids, mask, positions, cache; seeded random, nothing masked."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab_size, (batch, length), generator=generator)
    mask = torch.ones(batch, past + length, dtype=torch.int64)
    positions = torch.arange(past, past + length).expand(batch, length).contiguous()
    cache = [
        torch.randn(batch, layer.num_key_value_heads, past, shape.head_dim, generator=generator).to(dtype)
        for layer in shape.layers
        for _ in ("key", "value")
    ]
    return (ids, mask, positions, *cache)


def torch_inputs(
    shape: ModelShape, *, batch: int, length: int, past: int, kept: int | None = None, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Arguments for :class:`TorchForward`: seeded random ids and cache, nothing masked, logits of the last ``kept``
    positions (default: all)."""
    ids, mask, positions, *cache = example_inputs(shape, batch=batch, length=length, past=past, dtype=dtype)
    return (ids, mask, positions, torch.arange(length - (kept or length), length), *cache)
