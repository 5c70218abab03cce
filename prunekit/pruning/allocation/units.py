"""Which units of a model stay: the best of each layer, and places of what is kept within what was kept before."""

from __future__ import annotations

from typing import Any

import torch

from prunekit.plan import LayerKeep
from prunekit.plan.shape import LayerShape
from prunekit.pruning.importance.scores import LayerScores
from prunekit.utils.process import ranks


def agreed(keeps: tuple[LayerKeep, ...]) -> tuple[LayerKeep, ...]:
    """Those of rank 0, on all ranks: what they computed alike may differ in the last bit where machines differ."""
    if ranks.size() == 1:
        return keeps
    told: Any = ranks.shared([[keep.index, keep.kv_heads, keep.query_heads, keep.ffn] for keep in keeps])
    return tuple(LayerKeep(index, *map(tuple, units)) for index, *units in told)


def best_units(index: int, current: LayerShape, scores: LayerScores, target: LayerShape) -> LayerKeep:
    """The best-scoring units of a layer of shape ``current``, as many as ``target`` has; ties go to lower indices."""
    kv_heads = top(scores.kv_heads, target.num_key_value_heads)
    query_heads = []
    for kv in kv_heads:
        own = top(scores.query_heads[kv], target.group_size)
        query_heads += [kv * current.group_size + head for head in own]
    return LayerKeep(index, kv_heads, tuple(query_heads), top(scores.ffn, target.intermediate_size))


def top(values: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` largest values, rising; ties go to the lower index, so that a plan never depends on a
    sort's whims."""
    order = torch.sort(values, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def relative(outer: LayerKeep, inner: LayerKeep) -> LayerKeep:
    """Reverse of :meth:`LayerKeep.compose`: units of ``inner`` as indices into what ``outer`` kept."""
    kept = (outer.kv_heads, outer.query_heads, outer.ffn)
    places = [{unit: place for place, unit in enumerate(units)} for units in kept]
    return LayerKeep(
        outer.index,
        tuple(places[0][unit] for unit in inner.kv_heads),
        tuple(places[1][unit] for unit in inner.query_heads),
        tuple(places[2][unit] for unit in inner.ffn),
    )
