"""A session without a model: synthetic scores over a real shape, so that allocations are tested in milliseconds."""

from __future__ import annotations

import torch

from prunekit.plan import LayerKeep
from prunekit.scores import LayerScores, Scores
from prunekit.session import Session
from prunekit.shape import LayerShape, ModelShape

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

    def shrink(self, keeps: tuple[LayerKeep, ...]) -> None:
        for old, new in zip(self.keeps, keeps, strict=True):
            assert set(new.ffn) <= set(old.ffn) and set(new.query_heads) <= set(old.query_heads)
        self.keeps = keeps
