"""A causal LM rewritten for tracing: attention over KV groups, logits of the last positions only, fused operators.

The model's own code is traced; what is swapped are the places it leaves open (its attention function, its output head)
and its norms, so a family needs no graph of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

PLAIN_ATTENTION = "prunekit_onnx_plain"


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in plain matrix products, in which the query heads of a KV group are rows of one product.

    query [B, H, S, D], key and value [B, K, T, D], attention_mask additive [B, 1, S, T] → [B, S, H, D]. Keys and values
    are never repeated, which is what the usual form spends its time on where a cache is long.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups * length, width) * scaling
    scores = torch.matmul(rows, key.transpose(2, 3)).reshape(batch, heads, length, key.shape[2])
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = torch.softmax((scores + attention_mask).float(), dim=-1).to(query.dtype)
    mixed = torch.matmul(scores.reshape(batch, groups, heads // groups * length, -1), value)
    return mixed.reshape(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register(PLAIN_ATTENTION, grouped_attention)
AttentionMaskInterface.register(PLAIN_ATTENTION, eager_mask)


class LastLogits(nn.Module):
    """The output head, on the last ``keep`` positions only (0: on all). Shapes are those of ``keep`` 0 when traced.

    A Gemm takes the weight as it is, [V, hidden], so that a tied one is the embedding table and is stored once.
    """

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.head = head
        self.keep: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape
        if self.keep is not None:
            one = torch.ones(1, dtype=torch.int64)
            keep = _node("Reshape", (self.keep, one), torch.int64, [1])  # Slice wants vectors
            start = _node("Neg", (keep,), torch.int64, [1])
            end = torch.full((1,), torch.iinfo(torch.int64).max, dtype=torch.int64)
            hidden = _node("Slice", (hidden, start, end, one), hidden.dtype, hidden.shape)
        weight = self.head.weight
        rows = _node("Reshape", (hidden, torch.tensor([-1, width])), hidden.dtype, [batch * length, width])
        inputs = (rows, weight) if self.head.bias is None else (rows, weight, self.head.bias)
        made = _node("Gemm", inputs, hidden.dtype, [batch * length, len(weight)], transB=1)
        shape = torch.tensor([batch, -1, len(weight)])
        return _node("Reshape", (made, shape), hidden.dtype, [batch, length, len(weight)])


def _node(op: str, inputs: Any, dtype: torch.dtype, shape: Any, **attributes: Any) -> torch.Tensor:
    """An ONNX operator in the traced graph, opaque to torch, whose output has that type and shape."""
    return torch.onnx.ops.symbolic(op, inputs, attributes, dtype=dtype, shape=shape)


class OnnxForward(nn.Module):
    """What is traced. ``model`` is changed and belongs to this module from then on.

    forward(input_ids int64 [B, S], attention_mask int64 [B, P + S], position_ids int64 [B, S], keep int64 [] or None,
    *past: key_0, value_0, …, each [B, K_i, P, head_dim]) → (logits, present_key_0, present_value_0, …) as
    :class:`prunekit.export.graph.CachedForward`.
    """

    def __init__(self, model: Any):
        super().__init__()
        model.set_attn_implementation(PLAIN_ATTENTION)
        model.lm_head = LastLogits(model.lm_head)
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        keep: torch.Tensor | None,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        self.model.lm_head.keep = keep
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
        self.model.lm_head.keep = None
        return (out.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))
