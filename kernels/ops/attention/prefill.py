"""Attention of many new tokens: PyTorch's fused kernels, which know grouped queries and any head count."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Causal attention of the last L of S tokens; [B, L, Hq, D].

    ``query`` [B, L, Hq, D]; ``key`` and ``value`` [B, Hkv, S, D], the new tokens' included. A token sees itself and,
    with a ``window``, the ``window`` − 1 before it. With a ``softcap`` c logits are c · tanh(logits / c), which no
    fused kernel of PyTorch has, so that is computed in the open.
    """
    length, seen = query.shape[1], key.shape[2]
    query = query.transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    hidden_by_window = 0 < window < seen
    if length == seen and not hidden_by_window and not softcap:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
        return mixed.transpose(1, 2)
    to = torch.arange(seen - length, seen, device=query.device)[:, None]
    place = torch.arange(seen, device=query.device)[None]
    mask = place <= to
    if hidden_by_window:
        mask &= place > to - window
    if not softcap:
        # Repeated, not enable_gqa: with a mask only PyTorch's plain attention, which holds all logits, takes groups.
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return mixed.transpose(1, 2)
    grouped = query.unflatten(1, (-1, groups))
    logits = (grouped @ key[:, :, None].mT).float() * scale
    logits = softcap * torch.tanh(logits / softcap)
    weights = torch.softmax(logits.masked_fill(~mask, float("-inf")), dim=-1).to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2).transpose(1, 2)
