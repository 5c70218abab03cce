"""Importance that needs no text: the size of a unit's weights, and chance as the baseline of baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch

from prunekit.models.families import Family
from prunekit.plan.shape import ModelShape
from prunekit.pruning.importance.base import IMPORTANCE, WeightImportance
from prunekit.pruning.importance.scores import LayerScores, unit_sums


class Magnitude(WeightImportance):
    """The sum of |w|^p over all weights of a unit; p = 1 or 2."""

    def __init__(self, power: int):
        self._power = power

    def of_weights(
        self, family: Family, shape: ModelShape, seed: int, layers: Iterable[Mapping[str, torch.Tensor]]
    ) -> tuple[LayerScores, ...]:
        return tuple(
            unit_sums(family, layer, shape.head_dim, tensors, self._power).scores()
            for layer, tensors in zip(shape.layers, layers, strict=True)
        )


class Random(WeightImportance):
    """Uniform in [0, 1), from the seed."""

    def of_weights(
        self, family: Family, shape: ModelShape, seed: int, layers: Iterable[Mapping[str, torch.Tensor]]
    ) -> tuple[LayerScores, ...]:
        generator = torch.Generator().manual_seed(seed)
        scores = []
        for layer, _ in zip(shape.layers, layers, strict=True):
            query = torch.rand(layer.num_key_value_heads, layer.group_size, dtype=torch.float64, generator=generator)
            ffn = torch.rand(layer.intermediate_size, dtype=torch.float64, generator=generator)
            scores.append(LayerScores(query.sum(1), query, ffn))
        return tuple(scores)


IMPORTANCE["magnitude"] = partial(Magnitude, 2)
IMPORTANCE["magnitude-l1"] = partial(Magnitude, 1)
IMPORTANCE["random"] = Random
