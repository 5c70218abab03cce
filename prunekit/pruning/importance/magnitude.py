"""Importance that needs no text: the size of a unit's weights, and chance as the baseline of baselines."""

from __future__ import annotations

from functools import partial

import torch

from prunekit.pruning.importance.base import IMPORTANCE, Importance
from prunekit.pruning.importance.scores import LayerScores, unit_sums


class Magnitude(Importance):
    """The sum of |w|^p over all weights of a unit; p = 1 or 2."""

    def __init__(self, power: int):
        self._power = power

    def result(self) -> tuple[LayerScores, ...]:
        watched = self.watched
        return tuple(
            unit_sums(watched.family, shape, watched.shape.head_dim, module, self._power).scores()
            for shape, module in zip(watched.shape.layers, watched.layers, strict=True)
        )


class Random(Importance):
    """Uniform in [0, 1), from the seed."""

    def result(self) -> tuple[LayerScores, ...]:
        generator = torch.Generator().manual_seed(self.watched.seed)
        scores = []
        for layer in self.watched.shape.layers:
            query = torch.rand(layer.num_key_value_heads, layer.group_size, dtype=torch.float64, generator=generator)
            ffn = torch.rand(layer.intermediate_size, dtype=torch.float64, generator=generator)
            scores.append(LayerScores(query.sum(1), query, ffn))
        return tuple(scores)


IMPORTANCE["magnitude"] = partial(Magnitude, 2)
IMPORTANCE["magnitude-l1"] = partial(Magnitude, 1)
IMPORTANCE["random"] = Random
