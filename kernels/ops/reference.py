"""The specification: what every op computes, in float64 and as plainly as it can be written.

Each function has the name and the arguments of its op and returns float64. Slow on purpose; used by tests and by the
GPU check.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    x = x.double()
    if weight is None:
        return x
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """A weight whose rows (second axis from the end) have one scale each."""
    return weight.double() if scale is None else weight.double() * scale.double()[..., None]


def linear_decode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """cap(norm(x) Wᵀ + bias) + residual, with W = weight · scale by row; [rows, n]."""
    out = _norm(x, norm_weight, eps) @ _scaled(weight, scale).T
    if bias is not None:
        out = out + bias.double()
    if softcap:
        out = softcap * (out / softcap).tanh()
    return out if residual is None else out + residual.double()


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """softmax(scale · q Kᵀ) V over the visible places of each sequence; [batch, heads, head_dim]."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k_cache.shape[1]
    for row, length in enumerate(lengths.tolist()):
        seen = slice(max(0, length - window) if window else 0, length)
        for head in range(q.shape[1]):
            kv = head // group
            logits = k_cache[row, kv, seen].double() @ q[row, head].double() * scale
            if softcap:
                logits = softcap * (logits / softcap).tanh()
            out[row, head] = logits.softmax(0) @ v_cache[row, kv, seen].double()
    return out


def rope_cache(
    qkv: Tensor,
    num_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    rows: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """rope(norm(q)) [tokens, heads, head_dim]; rope(norm(k)) and v go into the caches, in their dtype."""
    num_kv, head_dim = k_cache.shape[1], k_cache.shape[3]
    q, k, v = qkv.double().split([num_heads * head_dim, num_kv * head_dim, num_kv * head_dim], dim=1)
    out = torch.zeros(len(qkv), num_heads, head_dim, dtype=torch.float64)
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):

        def heads(x: Tensor, weight: Tensor | None, token: int = token, position: int = position) -> Tensor:
            x = x[token]
            if weight is not None and weight.numel() == head_dim:  # a norm of each head
                x = torch.cat([_norm(head, weight, eps) for head in x.split(head_dim)])
            else:
                x = _norm(x, weight, eps)
            x = x.view(-1, head_dim).clone()
            if cos is not None and sin is not None:
                half = cos.shape[1]
                first, second = x[:, :half].clone(), x[:, half : 2 * half].clone()
                x[:, :half] = first * cos[position].double() - second * sin[position].double()
                x[:, half : 2 * half] = second * cos[position].double() + first * sin[position].double()
            return x

        out[token] = heads(q, q_norm)
        k_cache[row, :, position] = heads(k, k_norm).to(k_cache.dtype)
        v_cache[row, :, position] = v[token].view(num_kv, head_dim).to(v_cache.dtype)
    return out


def qkv_rope(
    x: Tensor,
    weight: Tensor,
    num_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """linear_decode, then rope_cache without norms; token i lies in cache row i."""
    qkv = linear_decode(x, weight, bias, scale, norm_weight, eps)
    return rope_cache(qkv, num_heads, k_cache, v_cache, positions, torch.arange(len(x)), cos, sin)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight, [rows, hidden]."""
    return _norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual)."""
    total = x.double() + residual.double()
    return _norm(total, weight, eps), total


def rms_norm_add(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """residual + norm(x)."""
    return residual.double() + _norm(x, weight, eps)


def gated_act(gate_up: Tensor, activation: str, bias: Tensor | None = None) -> Tensor:
    """act(gate) · up of gate and up side by side, [rows, 2 · width] → [rows, width]."""
    gate_up = gate_up.double()
    if bias is not None:
        gate_up = gate_up + bias.double().flatten()
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return gate / (1 + (-gate).exp()) * up
    return 0.5 * gate * (1 + ((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)).tanh()) * up


def mlp(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """down(act(gate(norm(x))) · up(norm(x))) + residual in the packed layout; [rows, hidden]."""
    gates = _norm(x, norm_weight, eps) @ _scaled(gate_up, gate_up_scale).flatten(0, 1).T
    out = gated_act(gates, activation, gate_up_bias) @ _scaled(down, down_scale).T
    if down_bias is not None:
        out = out + down_bias.double()
    return out if residual is None else out + residual.double()


# One op for a decode step's rows, one for any number: the same function.
mlp_decode = mlp
