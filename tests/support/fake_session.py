"""A session without a model: synthetic scores over a real shape, so that allocations are tested in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prunekit.plan import LayerKeep
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.curves.loss_curves import NONE, FfnCurve, HeadChoice, LayerCurves
from prunekit.pruning.importance.scores import LayerScores, Scores

SMOLLM2 = ModelShape(576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30)


class FakeSession(Session):
    """Scores drawn from a seed; ``importance`` of layers given, or random."""

    def __init__(self, source: ModelShape, seed: int = 0, importance: list[float] | None = None):
        self.source = source
        self.keeps = tuple(LayerKeep.everything(i, layer) for i, layer in enumerate(source.layers))
        generator = torch.Generator().manual_seed(seed)
        self._layers = importance or torch.rand(source.num_hidden_layers, generator=generator).tolist()
        self._units = [
            LayerScores(
                torch.rand(s.num_key_value_heads, generator=generator, dtype=torch.float64),
                torch.rand(s.num_key_value_heads, s.group_size, generator=generator, dtype=torch.float64),
                torch.rand(s.intermediate_size, generator=generator, dtype=torch.float64),
            )
            for s in source.layers
        ]
        self.scored: list[int] = []

    def score(self, step: int = 0) -> Scores:
        self.scored.append(step)
        layers = []
        for keep, unit, dense in zip(self.keeps, self._units, self.source.layers, strict=True):
            query = unit.query_heads.reshape(-1)[list(keep.query_heads)].view(len(keep.kv_heads), -1)
            assert dense.group_size >= query.shape[1]
            layers.append(LayerScores(unit.kv_heads[list(keep.kv_heads)], query, unit.ffn[list(keep.ffn)]))
        return Scores("taylor", tuple(layers), torch.tensor(self._layers, dtype=torch.float64), "cosine", 1.0, 1)

    def curves(self, advance: Callable[..., None], units: Sequence[str] = ()) -> tuple[LayerCurves, ...]:
        """Curves that rise by the scores of what goes, the lowest first."""
        return tuple(_curves(unit, dense) for unit, dense in zip(self._units, self.source.layers, strict=True))

    def shrink(self, keeps: tuple[LayerKeep, ...]) -> None:
        for old, new in zip(self.keeps, keeps, strict=True):
            assert set(new.ffn) <= set(old.ffn) and set(new.query_heads) <= set(old.query_heads)
        self.keeps = keeps


def _curves(unit: LayerScores, dense: LayerShape) -> LayerCurves:
    values, order = unit.ffn.sort()
    ffn = FfnCurve(tuple(order.tolist()), (0.0, *values.cumsum(0).tolist()))
    heads = {NONE: HeadChoice((), (), 100 * unit.query_heads.sum().item())}
    for kv in range(1, dense.num_key_value_heads + 1):
        groups = sorted(unit.kv_heads.topk(kv).indices.tolist())
        for size in range(1, dense.group_size + 1):
            query = [group * dense.group_size + place for group in groups for place in range(size)]
            lost = unit.query_heads.sum() - unit.query_heads[groups, :size].sum()
            heads[kv, size] = HeadChoice(tuple(groups), tuple(query), 100 * lost.item())
    return LayerCurves(ffn, heads)
