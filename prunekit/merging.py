"""KV heads that are merged into their mean: which ones, and what that costs in loss.

A merged head serves the query heads of all its members. What the layer then computes is another input of o_proj, so it
is priced by running the attention with means in place and solving o_proj on what comes out, in the metric of
:mod:`prunekit.curves`. Query heads can go from there on by elimination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from prunekit.families import Family, unit_count
from prunekit.least_squares import Elimination, Moments, penalty_of
from prunekit.shape import Heads, LayerShape, ModelShape
from prunekit.slicing import HeadMerger
from prunekit.sublayers import Sublayers

Merged = tuple[tuple[int, ...], ...]
"""Groups of KV heads that become one each."""


def head_distances(parts: Sublayers, shape: ModelShape, index: int, stream: Sequence[torch.Tensor]) -> torch.Tensor:
    """How unlike KV heads are on the text, float64 [K, K]: E‖kᵢ − kⱼ‖² over the mean E‖k‖², and the same of values.

    Where keys are normalised a head at a time, only their direction counts.
    """
    decoder, layer = parts.layers[index], shape.layers[index]
    count = layer.num_key_value_heads
    products = {kind: torch.zeros(count, count, dtype=torch.float64) for kind in ("key", "value")}
    for hidden in stream:
        normed = parts.normed(decoder, "attention", hidden)
        for kind, heads in _keys_and_values(parts.family, decoder, normed, layer, shape.head_dim).items():
            heads_TKD = heads.flatten(0, 1).float()
            if kind == "key" and shape.qk_norm == "head":
                heads_TKD = nn.functional.normalize(heads_TKD, dim=-1)
            products[kind] += torch.einsum("tkd,tld->kl", heads_TKD, heads_TKD).double().cpu()
    distances = torch.zeros(count, count, dtype=torch.float64)
    for product in products.values():
        norms = product.diagonal()
        distances += (norms[:, None] + norms[None] - 2 * product).clamp(min=0) / norms.mean().clamp(min=1e-300)
    return distances


def _keys_and_values(
    family: Family, decoder: nn.Module, normed: torch.Tensor, layer: LayerShape, head_dim: int
) -> dict[str, torch.Tensor]:
    """Keys and values [B, L, K, D] of a layer, before any norm or rotation."""
    found = []
    for coupling in family.couplings:
        if "kv" in coupling.parts:
            output = decoder.get_submodule(coupling.module)(normed)
            sizes = [unit_count(layer, part) * head_dim for part in coupling.parts]
            runs = zip(coupling.parts, output.split(sizes, -1), strict=True)
            found += [run.unflatten(-1, (-1, head_dim)) for part, run in runs if part == "kv"]
    return dict(zip(("key", "value"), found, strict=True))


def partition(distances: torch.Tensor, size: int) -> Merged:
    """KV heads in groups of ``size`` whose members are alike: from neighbours on, two heads change places as long as
    that makes the summed distances inside groups smaller, the best exchange first. Ties go to lower indices."""
    far = distances.tolist()
    count = len(far)
    groups = [list(range(start, start + size)) for start in range(0, count, size)]
    while True:
        best: tuple[float, int, int, int, int] | None = None
        for a in range(len(groups)):
            for b in range(a + 1, len(groups)):
                for i, one in enumerate(groups[a]):
                    for j, other in enumerate(groups[b]):
                        gain = sum(far[one][x] - far[other][x] for x in groups[a] if x != one) + sum(
                            far[other][x] - far[one][x] for x in groups[b] if x != other
                        )
                        if gain > 1e-9 and (best is None or gain > best[0] + 1e-12):
                            best = (gain, a, b, i, j)
        if best is None:
            return tuple(sorted(tuple(sorted(group)) for group in groups))
        _, a, b, i, j = best
        groups[a][i], groups[b][j] = groups[b][j], groups[a][i]


def partitions(distances: torch.Tensor) -> tuple[Merged, ...]:
    """The best groups of every size that shares out the KV heads."""
    count = len(distances)
    return tuple(partition(distances, size) for size in range(2, count + 1) if count % size == 0)


class InPlace:
    """Means in place of KV heads in a layer of a dense model, and the layer's own weights back."""

    def __init__(self, decoder: nn.Module, family: Family, shape: ModelShape, index: int):
        self._decoder, self._family, self._shape, self._index = decoder, family, shape, index
        self._own: dict[str, torch.Tensor] = {}

    def set(self, merged: Merged) -> None:
        """Merge these heads; with no groups, put back what was there."""
        parameters = dict(self._decoder.named_parameters())
        for name, own in self._own.items():
            parameters[name].data = own
        self._own = {}
        merger = HeadMerger(self._family, self._shape, self._index, merged)
        for name in merger.names:
            if name in parameters:
                self._own[name] = parameters[name].data
                parameters[name].data = merger(name, self._own[name])


class MergeTrial:
    """One way to merge the KV heads of a layer, while its attention runs on the text."""

    def __init__(self, parts: Sublayers, shape: ModelShape, index: int, merged: Merged):
        self.merged = merged
        self._parts, self._index, self._head_dim = parts, index, shape.head_dim
        self._decoder = parts.layers[index]
        self._layer = shape.layers[index]
        self._place = InPlace(self._decoder, parts.family, shape, index)
        self._projection = parts.projection(self._decoder, "attention")
        inputs = self._projection.in_features
        self._moments = Moments(inputs, inputs, self._projection.weight.device, parts.fast)

    def add(self, normed: torch.Tensor, z_Tn: torch.Tensor, weight_T: torch.Tensor) -> None:
        """One batch of the sub-layer's inputs [B, L, d], and what enters the dense layer's o_proj for it."""
        self._place.set(self.merged)
        try:
            z, _ = self._parts.run(self._decoder, self._index, "attention", normed)
        finally:
            self._place.set(())
        self._moments.add(z.flatten(0, 1), z_Tn, weight_T)

    def start(self, dense: Moments, ridge: float, metric: torch.Tensor) -> Elimination:
        """All query heads on merged keys and values, o_proj solved anew; ``dense`` are the moments of the dense layer's
        inputs. Its ``loss`` is what that costs, the penalty included: tr M(YᵀY + λ W₀W₀ᵀ − W (YᵀZ + λ W₀)ᵀ) a token,
        zero where nothing is merged."""
        old = self._projection.weight.double()
        moments = self._moments.part(torch.arange(len(self._moments.zz)))
        moments.yz = old @ self._moments.yz
        made = Elimination(moments, self._projection.weight, ridge, rows=self._head_dim, metric=metric)
        penalty = penalty_of(moments, ridge)
        lost = old @ dense.zz @ old.T + penalty * (old @ old.T) - made.weight @ (moments.yz + penalty * old).T
        made.loss = max((metric.to(lost) * lost).sum().item(), 0.0) / max(moments.tokens, 1)
        return made

    def choices(self, state: Elimination) -> Iterator[tuple[Heads, tuple[int, ...], Elimination]]:
        """From ``state`` on one query head of every merged group goes a round, while a group has more of them than a
        group of the dense layer: heads, the query heads that stay, and the state."""
        dense = self._layer.group_size
        members = [
            torch.tensor([kv * dense + head for kv in group for head in range(dense)], device=state.alive.device)
            for group in self.merged
        ]
        for size in range(len(members[0]), dense, -1):
            yield (len(members), size), tuple(state.alive.nonzero()[:, 0].tolist()), state
            if size > dense + 1:
                for heads in members:
                    state.remove(heads[state.costs()[heads].argmin()][None])
