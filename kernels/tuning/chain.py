"""Some layers of a decode step one after the other: what a tile or a number of splits is judged by.

An op timed back to back with itself overlaps from call to call, which it can't in a model. Here every launch stands
between those that it stands between there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from prunekit.kernels.ops.attention.decode import HEADS, attention_decode
from prunekit.kernels.ops.attention.qkv_rope import qkv_rope
from prunekit.kernels.ops.linear_decode import linear_decode
from prunekit.kernels.ops.mlp.decode import mlp_decode
from prunekit.kernels.ops.utils._triton import cdiv
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.tuning.arena import Arena
from prunekit.kernels.tuning.measure import Data

EPS = 1e-5


@dataclass(frozen=True)
class Layer:
    """A decoder layer of one sequence whose cache has room for ``context`` tokens and is full; ``count`` of them are
    a chain."""

    hidden: int
    head_dim: int
    heads: int
    kv: int
    width: int
    context: int = 256
    count: int = 8

    def sizes(self, op: str) -> Iterator[dict[str, int]]:
        """Where a choice for ``op`` counts in this layer."""
        channels, stored = self.heads * self.head_dim, padded(self.width)
        if op == "qkv_rope_tile":
            yield {"n": channels + 2 * self.kv * self.head_dim, "k": self.hidden}
        elif op == "linear_decode_tile":
            yield {"n": self.hidden, "k": channels}
            yield {"n": self.hidden, "k": stored}
        elif op == "mlp_decode_tile":
            yield {"n": 2 * stored, "k": self.hidden}
        elif op == "attention_splits":
            programs = self.kv * cdiv(self.heads // self.kv, HEADS)
            yield {"programs": programs, "tokens": self.context, "head_dim": self.head_dim}


class Chain:
    """Layers with weights of their own, from an ``arena`` or else drawn; a call returns the last hidden state [1,
    hidden]."""

    def __init__(self, layer: Layer, data: Data, arena: Arena | None = None):
        self.layer = layer

        def weight(*shape: int) -> torch.Tensor:
            return arena.take(*shape) if arena else data.normal(*shape, scale=shape[-1] ** -0.5)

        channels, cached = layer.heads * layer.head_dim, (1, layer.kv, layer.context, layer.head_dim)
        features, stored = channels + 2 * layer.kv * layer.head_dim, padded(layer.width)
        self.x = data.normal(1, layer.hidden)
        self.norm = 1 + 0.1 * data.normal(layer.hidden, dtype=torch.float32)
        self.layers = [
            (
                weight(features, layer.hidden),
                data.normal(*cached),
                data.normal(*cached),
                weight(layer.hidden, channels),
                weight(2, stored, layer.hidden),
                weight(layer.hidden, stored),
            )
            for _ in range(layer.count)
        ]
        last = layer.context - 1
        self.position = torch.full((1,), last, dtype=torch.int32, device=data.device)
        self.lengths = self.position + 1
        speed = 10000.0 ** (-torch.arange(layer.head_dim // 2, device=data.device) * 2 / layer.head_dim)
        angles = torch.arange(layer.context, device=data.device)[:, None] * speed
        self.cos, self.sin = angles.cos(), angles.sin()
        self.scale = layer.head_dim**-0.5
        # As a runtime holds them: made anew, they would be a launch more in each layer.
        self.arrivals = torch.zeros(layer.heads, dtype=torch.int32, device=data.device)

    def __call__(self) -> torch.Tensor:
        x, heads = self.x, self.layer.heads
        rest = (self.position, self.cos, self.sin, None, None, self.norm, EPS)
        for qkv, key, value, out, gate_up, down in self.layers:
            query = qkv_rope(x, qkv, heads, key, value, *rest)
            mixed = attention_decode(query, key, value, self.lengths, self.scale, arrivals=self.arrivals).flatten(1)
            x = linear_decode(mixed, out, residual=x)
            x = mlp_decode(x, gate_up, down, "silu", self.norm, EPS, residual=x)
        return x
