"""A causal LM as it is traced to ONNX: one operator for attention, rotation and norm where the standard has one.

The model's own code is traced. What is swapped are the places it leaves open (attention function, mask, cache, output
head), its norms and its rotation, so a family needs no graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_IMPLEMENTATION = "prunekit_onnx"


@dataclass
class _Tracing:
    """What attention needs and its interface doesn't pass: the cache, flat as the graph's inputs and outputs are."""

    fused: bool
    past: tuple[torch.Tensor, ...]
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_tracing: ContextVar[_Tracing] = ContextVar("tracing")


class OnnxForward(nn.Module):
    """What is traced. ``model`` is changed and belongs to this module from then on.

    forward(input_ids int64 [B, S], attention_mask int64 [B, P + S], position_ids int64 [B, S], keep int64 [] or None,
    *past: key_0, value_0, …, each [B, K_i, P, head_dim]) → (logits float32, present_key_0, present_value_0, …) as
    :class:`prunekit.export.formats.pytorch.forward.TorchForward`; ``keep`` as in :class:`LastLogits`. ``fused`` takes
    operators of opset 23 (RMSNormalization, RotaryEmbedding, Attention), which can be traced but not run by torch; else
    what is traced is arithmetic. ``norm_offset`` is added to the weights of norms.
    """

    def __init__(self, model: Any, *, fused: bool, norm_offset: float = 0.0):
        super().__init__()
        model.set_attn_implementation(_IMPLEMENTATION)
        model.lm_head = LastLogits(model.lm_head)
        if fused:
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if type(child).__name__.endswith("RMSNorm"):
                        setattr(parent, name, FusedNorm(child, norm_offset))
        self.model = model
        self.fused = fused

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        keep: torch.Tensor | None,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        state = _Tracing(self.fused, past)
        token = _tracing.set(state)
        self.model.lm_head.keep = keep
        try:
            with fused_rotation(self.model) if self.fused else nullcontext():
                out = self.model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=_OnlyNew(past),
                    use_cache=True,
                )
        finally:
            self.model.lm_head.keep = None
            _tracing.reset(token)
        present = (tensor for layer in sorted(state.present) for tensor in state.present[layer])
        return (out.logits.float(), *present)


class _OnlyNew(DynamicCache):
    """Answers how long the cache is; attention itself puts old and new keys together."""

    def __init__(self, past: tuple[torch.Tensor, ...]):
        super().__init__()
        for index in range(len(past) // 2):
            super().update(past[2 * index], past[2 * index + 1], index)

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        return key_states, value_states


def _node(op: str, inputs: Any, dtype: torch.dtype, shape: Any, **attributes: Any) -> torch.Tensor:
    """An ONNX operator in the traced graph, opaque to torch, whose output has that type and shape."""
    return torch.onnx.ops.symbolic(op, inputs, attributes, dtype=dtype, shape=shape)


def _flat(states: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] → [B, S, H · D]"""
    batch, heads, length, width = states.shape
    turned = states.transpose(1, 2)
    return _node("Reshape", (turned, torch.tensor([0, 0, heads * width])), states.dtype, [batch, length, heads * width])


def _by_head(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, S, H · D] → [B, S, H, D]"""
    batch, length, width = states.shape
    shape = [batch, length, heads, width // heads]
    return _node("Reshape", (states, torch.tensor([0, 0, *shape[2:]])), states.dtype, shape)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [B, H, S, D], key and value [B, K, S, D], additive mask [B, 1, S, P + S]
    → [B, S, H, D]."""
    state = _tracing.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    past_key, past_value = state.past[2 * layer : 2 * layer + 2]
    attend = _fused_attention if state.fused else _grouped_attention
    mixed, *present = attend(query, key, value, attention_mask, past_key, past_value, scaling, softcap)
    state.present[layer] = (present[0], present[1])
    return mixed, None


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    """0 where a query sees a key, else a large negative number: half the least, so that adding a score to it can't
    overflow to an infinity, whose rows (all padding) would become NaN."""
    seen: Any = sdpa_mask(*args, **{**options, "allow_is_causal_skip": False})
    return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min / 2)


AttentionInterface.register(_IMPLEMENTATION, attention)
AttentionMaskInterface.register(_IMPLEMENTATION, additive_mask)


def _grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plain matrix products in which the query heads of a KV group are rows of one product: keys and values are never
    repeated, which is what the usual form spends its time on where a cache is long."""
    batch, heads, length, width = query.shape
    key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups * length, width) * scaling
    scores = torch.matmul(rows, key.transpose(2, 3)).reshape(batch, heads, length, key.shape[2])
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shares = torch.softmax((scores + mask).float(), dim=-1).to(query.dtype)
    mixed = torch.matmul(shares.reshape(batch, groups, heads // groups * length, -1), value)
    return mixed.reshape(batch, heads, length, width).transpose(1, 2), key, value


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The Attention operator, which takes the cache and appends to it."""
    batch, heads, length, width = query.shape
    groups, total = key.shape[1], past_key.shape[2] + length
    attributes: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": groups, "scale": float(scaling)}
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    grown = [batch, groups, total, width]
    mixed, new_key, new_value = torch.onnx.ops.symbolic_multi_out(
        "Attention",
        (_flat(query), _flat(key), _flat(value), mask, past_key, past_value),
        attributes,
        dtypes=[query.dtype] * 3,
        shapes=[[batch, length, heads * width], grown, grown],
    )
    return _by_head(mixed, heads), new_key, new_value


class FusedNorm(nn.Module):
    """An RMS norm as the operator RMSNormalization, which computes in float32 as transformers does."""

    def __init__(self, norm: Any, offset: float):
        super().__init__()
        self.weight = nn.Parameter(norm.weight + offset if offset else norm.weight, requires_grad=False)
        self.epsilon = float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inputs = (hidden, self.weight)
        return _node("RMSNormalization", inputs, hidden.dtype, hidden.shape, epsilon=self.epsilon, stash_type=1)


@contextmanager
def fused_rotation(model: Any) -> Iterator[None]:
    """Rotary embeddings are the operator RotaryEmbedding while the block runs."""
    names: dict[str, Any] = type(model.model.layers[0].self_attn).forward.__globals__
    halves: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def half(table: torch.Tensor) -> torch.Tensor:
        # Both halves of transformers' tables are the same; all layers share what is cut.
        if id(table) not in halves:
            halves[id(table)] = (table, table[..., : table.shape[-1] // 2])
        return halves[id(table)][1]

    def turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads, width = states.shape[1], states.shape[-1]
        part = {} if cos.shape[-1] == width else {"rotary_embedding_dim": cos.shape[-1]}
        flat = _flat(states)
        made = _node("RotaryEmbedding", (flat, half(cos), half(sin)), flat.dtype, flat.shape, num_heads=heads, **part)
        return _by_head(made, heads).transpose(1, 2)

    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any) -> Any:
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        return turned(q, cos, sin), turned(k, cos, sin)

    with patch.dict(names, {"apply_rotary_pos_emb": apply}):
        yield


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
