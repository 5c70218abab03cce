"""Scores: how much every prunable unit and every layer matters, and how that was measured.

Legend: L layers, H query heads, K KV heads, G query heads a KV head, D head_dim, F FFN channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prunekit.errors import PrunekitError
from prunekit.models.families import Family, Part, unit_count, unit_rows
from prunekit.plan.shape import LayerShape


@dataclass(frozen=True)
class LayerScores:
    """Importance of one layer's units, float64 on the CPU; higher matters more.

    ``kv_heads`` [K] is of whole KV groups (the KV head with the query heads it serves), ``query_heads`` [K, G] of each
    query head by itself, ``ffn`` [F] of each FFN channel. Where a head's score is the mean over its channels,
    ``channel_spread`` is the standard deviation over the channels of all heads.
    """

    kv_heads: torch.Tensor
    query_heads: torch.Tensor
    ffn: torch.Tensor
    channel_spread: float | None = None


@dataclass(frozen=True)
class Scores:
    """Unit scores of every layer and, where measured, each layer's importance [L] (higher matters more), and that of
    each piece of the text by itself, ``layer_samples`` [pieces, L]."""

    importance: str
    layers: tuple[LayerScores, ...]
    layer_importance: torch.Tensor | None = None
    layer_method: str | None = None
    loss: float | None = None
    tokens: int = 0
    layer_samples: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for index, layer in enumerate(self.layers):
            for name, values in (("KV heads", layer.kv_heads), ("query heads", layer.query_heads), ("FFN", layer.ffn)):
                if not torch.isfinite(values).all():
                    raise PrunekitError(
                        f"Layer {index}: the {self.importance} scores of its {name} are not finite. Score in float32 "
                        "(--dtype float32), and check the model's weights for NaN."
                    )
        if self.layer_importance is not None:
            for index, value in enumerate(self.layer_importance.tolist()):
                if value != value or value in (float("inf"), float("-inf")):
                    raise PrunekitError(
                        f"Layer {index}: its {self.layer_method} importance is not finite. Score in float32 "
                        "(--dtype float32), and check the model's weights for NaN."
                    )


class UnitSums:
    """Adds values that lie along tensors of one layer up into a value a unit, in float64."""

    def __init__(self, layer: LayerShape, head_dim: int):
        self._layer = layer
        parts: tuple[Part, ...] = ("query", "kv", "ffn")
        self._rows = {part: unit_rows(part, head_dim) for part in parts}
        self.sums = {part: torch.zeros(unit_count(layer, part), dtype=torch.float64) for part in parts}

    def add(self, parts: Sequence[Part], values: torch.Tensor) -> None:
        """``values`` [n]: one number a row (or column) of a tensor whose runs of units are ``parts``."""
        # One transfer, then float64 sums on the CPU: accelerators without float64 work too.
        runs = values.detach().to("cpu", torch.float64)
        for part in parts:
            size = self.sums[part].numel() * self._rows[part]
            run, runs = runs[:size], runs[size:]
            self.sums[part] += run.view(-1, self._rows[part]).sum(1)

    def scores(self, scale: float = 1.0) -> LayerScores:
        group = self._layer.group_size
        query = self.sums["query"].view(-1, group) * scale
        return LayerScores(self.sums["kv"] * scale + query.sum(1), query, self.sums["ffn"] * scale)


def unit_sums(
    family: Family, layer: LayerShape, head_dim: int, tensors: Mapping[str, torch.Tensor], power: int
) -> UnitSums:
    """Sums of |w|^power over every tensor of each unit of one decoder layer, whose ``tensors`` have their names in it
    (``mlp.down_proj.weight``)."""
    sums = UnitSums(layer, head_dim)
    for name, axis, parts in family.unit_tensors():
        if name in tensors:
            saliency = tensors[name].detach().float().abs() ** power
            sums.add(parts, reduce_to_axis(saliency, axis))
    return sums


def reduce_to_axis(saliency: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum a matrix over the axis that is not ``axis``; a vector stays as it is."""
    return saliency if saliency.dim() == 1 else saliency.sum(1 - axis)
