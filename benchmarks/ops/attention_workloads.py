"""Workloads of the ops around attention."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common.tensors import Data
from benchmarks.ops import baselines
from benchmarks.ops.registry import op
from benchmarks.ops.workloads import Baseline, Size, Workload


def _full_angles(cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, head_dim], as transformers makes them."""
    return tuple(torch.cat((half, half), -1).to(dtype) for half in (cos, sin))  # type: ignore[return-value]


class QKVRope(Workload):
    """The first half of a decode step's attention; row b is the next token of sequence b."""

    kind = "heads"

    def build(self, size: Size, data: Data) -> None:
        heads, kv = size.layer.num_attention_heads, size.layer.num_key_value_heads
        channels = (heads + 2 * kv) * size.head_dim
        places = 64
        self.x = data.normal(size.rows, size.hidden)
        self.norm = data.norm(size.hidden)
        self.weight = data.weight(channels, size.hidden)
        self.bias = data.small(channels) if size.bias else None
        self.key, self.value = (data.cache(size.rows, kv, places, size.head_dim, 0) for _ in range(2))
        self.positions = data.ints([places // 2] * size.rows)
        self.cos, self.sin = data.rope(places, size.head_dim)
        self.work = channels * size.hidden * self.bytes_per_element

    def ours(self) -> Any:
        return op("qkv_rope")(
            self.x,
            self.weight,
            self.size.layer.num_attention_heads,
            self.key,
            self.value,
            self.positions,
            self.cos,
            self.sin,
            self.bias,
            None,
            self.norm,
            self.size.eps,
        )

    def _rest(self) -> tuple[Any, ...]:
        positions = self.positions.long()
        cos, sin = _full_angles(self.cos[positions], self.sin[positions], self.x.dtype)
        rows = torch.arange(self.size.rows, device=self.x.device)
        return self.key.clone(), self.value.clone(), rows, positions, cos, sin, self.size.eps

    def irregular(self) -> Baseline:
        heads, kv, head_dim = (
            self.size.layer.num_attention_heads,
            self.size.layer.num_key_value_heads,
            self.size.head_dim,
        )
        parts = [count * head_dim for count in (heads, kv, kv)]
        weights = tuple(part.clone() for part in self.weight.split(parts))
        biases = (None,) * 3 if self.bias is None else tuple(self.bias.to(self.x.dtype).split(parts))
        return baselines.qkv_separate, (self.x, self.norm.to(self.x.dtype), weights, biases, *self._rest())

    def padded(self) -> Baseline:
        bias = None if self.bias is None else self.bias.to(self.x.dtype)
        return baselines.qkv_packed, (self.x, self.norm.to(self.x.dtype), self.weight, bias, *self._rest())


class RopeCache(Workload):
    """RoPE and cache write of a prompt of ``rows`` tokens."""

    kind = "heads"

    def build(self, size: Size, data: Data) -> None:
        heads, kv = size.layer.num_attention_heads, size.layer.num_key_value_heads
        self.states = data.normal(size.rows, (heads + 2 * kv) * size.head_dim)
        self.key, self.value = (data.cache(1, kv, size.rows, size.head_dim, 0) for _ in range(2))
        self.positions = data.ints(range(size.rows))
        self.rows = data.ints([0] * size.rows)
        self.cos, self.sin = data.rope(size.rows, size.head_dim)
        self.work = 2 * self.states.numel() * self.bytes_per_element

    def ours(self) -> Any:
        heads = self.size.layer.num_attention_heads
        return op("rope_cache")(self.states, heads, self.key, self.value, self.positions, self.rows, self.cos, self.sin)

    def irregular(self) -> Baseline:
        cos, sin = _full_angles(self.cos, self.sin, self.states.dtype)
        places = (self.rows.long(), self.positions.long())
        return baselines.rope_cache, (self.states, self.key.clone(), self.value.clone(), *places, cos, sin)

    padded = irregular


class AttentionDecode(Workload):
    """One query a sequence over ``context`` tokens; the cache has room for more, which holds NaN."""

    kind = "heads"

    def build(self, size: Size, data: Data) -> None:
        kv, head_dim = size.layer.num_key_value_heads, size.head_dim
        self.query = data.normal(size.rows, size.layer.num_attention_heads, head_dim)
        room = size.context + 16
        self.key, self.value = (data.cache(size.rows, kv, room, head_dim, size.context) for _ in range(2))
        self.lengths = data.ints([size.context] * size.rows)
        self.scale = head_dim**-0.5
        self.work = 2 * size.rows * kv * size.context * head_dim * self.bytes_per_element

    def ours(self) -> Any:
        return op("attention_decode")(self.query, self.key, self.value, self.lengths, self.scale)

    def _written(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key[:, :, : self.size.context], self.value[:, :, : self.size.context]

    def irregular(self) -> Baseline:
        return baselines.attention_gqa, (self.query, *self._written())

    def padded(self) -> Baseline:
        return baselines.attention_folded, (self.query, *self._written())
