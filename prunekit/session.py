"""A model while it is being planned: scored, and shrunk in memory as a progressive method goes along."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from prunekit.families import Family
from prunekit.importance import score
from prunekit.plan import LayerKeep
from prunekit.scores import LayerScores, Scores
from prunekit.shape import LayerShape, ModelShape
from prunekit.slicing import LayerSlicer


class Session:
    """Holds a model, what of each source layer it still has, and how to score it.

    ``shrink`` replaces layers of the model in place: the model that was handed in is used up.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        draw: Callable[[int], torch.Tensor | None],
        *,
        importance: str,
        layer_importance: str | None,
        batch_size: int = 32,
        seed: int = 0,
        checkpoint: bool | None = None,
    ):
        self.model = model
        self.family = family
        self.source: ModelShape = family.shape(model.config)
        self.keeps: tuple[LayerKeep, ...] = tuple(
            LayerKeep.everything(index, layer) for index, layer in enumerate(self.source.layers)
        )
        self._draw = draw
        self._importance = importance
        self._layer_importance = layer_importance
        self._batch_size = batch_size
        self._seed = seed
        self._checkpoint = checkpoint

    @property
    def shape(self) -> ModelShape:
        """Shape of the model as it is now."""
        return self.source.with_layers(keep.shape for keep in self.keeps)

    def score(self, step: int = 0) -> Scores:
        """Score the model as it is now on the calibration text of ``step``."""
        return score(
            self.model,
            self.family,
            self.shape,
            self._draw(step),
            importance_name=self._importance,
            layer_importance_name=self._layer_importance,
            batch_size=self._batch_size,
            seed=self._seed + step,
            checkpoint=self._checkpoint,
        )

    def select(self, scores: Scores, shapes: tuple[LayerShape, ...]) -> tuple[LayerKeep, ...]:
        """The best units of the model as it is now, as many as ``shapes`` says, as indices into the source."""
        return tuple(
            compose(keep, best_units(index, current, layer_scores, target))
            for index, (keep, current, layer_scores, target) in enumerate(
                zip(self.keeps, self.shape.layers, scores.layers, shapes, strict=True)
            )
        )

    def shrink(self, keeps: tuple[LayerKeep, ...]) -> None:
        """Cut the model down to ``keeps`` (indices into the source; they must be among what it still has)."""
        layers = self.model.get_submodule("model.layers")
        for index, (old, new) in enumerate(zip(self.keeps, keeps, strict=True)):
            if old != new:
                layers[index] = self._cut(layers[index], index, relative(old, new))  # type: ignore[operator, index]
        self.keeps = keeps

    def _cut(self, layer: nn.Module, index: int, keep: LayerKeep) -> nn.Module:
        slicer = LayerSlicer(self.family, self.shape, keep)
        config = self.model.config
        heterogeneous = getattr(config, "is_heterogeneous", False)
        own = copy.copy(config.per_layer_config[index] if heterogeneous else config)  # type: ignore[index, operator, union-attr]
        own.num_attention_heads = keep.shape.num_attention_heads  # type: ignore[union-attr, assignment]
        own.num_key_value_heads = keep.shape.num_key_value_heads  # type: ignore[union-attr, assignment]
        own.intermediate_size = keep.shape.intermediate_size  # type: ignore[union-attr, assignment]
        own.head_dim = self.source.head_dim  # type: ignore[union-attr, assignment]
        with torch.device("meta"):
            new = type(layer)(own, index)
        tensors = {name: slicer(name, tensor) for name, tensor in layer.state_dict().items()}
        new.load_state_dict(tensors, assign=True)
        return new.train(layer.training)


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


def compose(outer: LayerKeep, inner: LayerKeep) -> LayerKeep:
    """``inner`` indexes into what ``outer`` kept: the same units as indices into the source."""
    return LayerKeep(
        outer.index,
        tuple(outer.kv_heads[i] for i in inner.kv_heads),
        tuple(outer.query_heads[i] for i in inner.query_heads),
        tuple(outer.ffn[i] for i in inner.ffn),
    )


def relative(outer: LayerKeep, inner: LayerKeep) -> LayerKeep:
    """Reverse of :func:`compose`: units of ``inner`` as indices into what ``outer`` kept."""
    kept = (outer.kv_heads, outer.query_heads, outer.ffn)
    places = [{unit: place for place, unit in enumerate(units)} for units in kept]
    return LayerKeep(
        outer.index,
        tuple(places[0][unit] for unit in inner.kv_heads),
        tuple(places[1][unit] for unit in inner.query_heads),
        tuple(places[2][unit] for unit in inner.ffn),
    )
