"""What the ops are measured against: the same work in PyTorch, as transformers does it and as cuBLAS likes it best."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def mlp_separate(x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
    """x + MLP(norm(x)) with three contiguous matrices of the irregular width."""
    normed = _norm(x, norm, eps)
    return x + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), down)


def mlp_packed(x: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor, eps: float) -> Tensor:
    """The same with gate and up in one padded matrix, and the sum in the last product's epilogue."""
    gate, up = F.linear(_norm(x, norm, eps), gate_up).chunk(2, -1)
    return torch.addmm(x, F.silu(gate) * up, down.T)


def gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def linear_add(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return residual + F.linear(x, weight)


def linear_addmm(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return torch.addmm(residual, x, weight.T)


def norm_linear(x: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.linear(_norm(x, norm, eps), weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, head_dim]; cos and sin [tokens, head_dim], as transformers makes them."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


def qkv_separate(
    x: Tensor,
    norm: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    biases: tuple[Tensor, Tensor, Tensor] | tuple[None, None, None],
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """Norm, three projections, RoPE, new places of the caches; returns the queries [tokens, heads, head_dim]."""
    normed = _norm(x, norm, eps)
    q, k, v = (
        F.linear(normed, weight, bias).unflatten(-1, (-1, key_cache.shape[-1]))
        for weight, bias in zip(weights, biases, strict=True)
    )
    key_cache[rows, :, positions] = _rotate(k, cos, sin)
    value_cache[rows, :, positions] = v
    return _rotate(q, cos, sin)


def qkv_packed(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor,
    rows: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """The same with one projection."""
    states = F.linear(_norm(x, norm, eps), weight, bias)
    return rope_cache(states, key_cache, value_cache, rows, positions, cos, sin)


def rope_cache(
    states: Tensor, key_cache: Tensor, value_cache: Tensor, rows: Tensor, positions: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """RoPE of packed queries, keys and values [tokens, channels], and the new places of the caches."""
    kv, head_dim = key_cache.shape[1], key_cache.shape[-1]
    states = states.unflatten(-1, (-1, head_dim))
    q, k, v = states.split([states.shape[1] - 2 * kv, kv, kv], 1)
    key_cache[rows, :, positions] = _rotate(k, cos, sin)
    value_cache[rows, :, positions] = v
    return _rotate(q, cos, sin)


def attention_gqa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query a sequence: q [batch, heads, head_dim], k and v [batch, kv_heads, tokens, head_dim]."""
    return F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]


def attention_folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with the heads of a group as the queries of one head, so that keys are read once."""
    folded = q.unflatten(1, (k.shape[1], -1))
    return F.scaled_dot_product_attention(folded, k, v).flatten(1, 2)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, weight, eps)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _norm(total, weight, eps), total


def norm_add(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    return residual + _norm(x, weight, eps)
