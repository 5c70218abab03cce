"""Tensors that lie between NaNs, so that a read past an end spoils a result and a write past it is seen."""

from __future__ import annotations

from typing import Any

import torch

_GUARD = 256


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a tensor, with NaN before and behind it (127 for int8)."""
    fill = float("nan") if tensor.is_floating_point() else 127
    memory = torch.full((tensor.numel() + 2 * _GUARD,), fill, dtype=tensor.dtype)
    inside = memory[_GUARD : _GUARD + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


def guard_all(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an op with every tensor of numbers guarded; those of int32 are counts and places."""
    return {
        name: guarded(value) if isinstance(value, torch.Tensor) and value.dtype != torch.int32 else value
        for name, value in arguments.items()
    }


def assert_guard_intact(tensor: torch.Tensor) -> None:
    """Nothing was written around a tensor that :func:`guarded` made."""
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    around = torch.cat([memory[:_GUARD], memory[-_GUARD:]])
    assert around.isnan().all()
