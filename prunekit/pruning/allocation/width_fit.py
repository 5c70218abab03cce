"""From how much each layer should lose to widths that are allowed and meet the budget.

The count of the result is the largest that the rounding allows at or below the budget: no layer could grow by one more
rounding unit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunekit.errors import PrunekitError
from prunekit.plan.shape import Heads, LayerShape, ModelShape
from prunekit.pruning.allocation.base import Problem

SPARSITY_LIMIT = 0.99


Losses = Callable[[float], Sequence[tuple[float, float]]]
"""Shares (attention, FFN) that every layer loses, as a function of one number that grows with pruning."""


@dataclass(frozen=True)
class Fitting:
    """Fits a model of shape ``source``, which has shrunk to ``current`` so far, to the budget of ``problem``."""

    source: ModelShape
    current: ModelShape
    problem: Problem

    def fit(self, losses: Losses, lowest: float, highest: float) -> tuple[LayerShape, ...]:
        """Shapes of all layers that meet the budget for the smallest pruning in [lowest, highest] that does.

        First one number decides the attention of every layer, then FFN widths alone take up what is left, in
        proportions that ``losses`` gives; the last quanta go to the layers that rounding took most from.
        """
        budget = self.problem.budget

        def attention(knob: float) -> list[Heads]:
            return [self.attention_at(index, loss) for index, (loss, _) in enumerate(losses(knob))]

        def widths(knob: float) -> list[float]:
            return [self._width_at(index, loss) for index, (_, loss) in enumerate(losses(knob))]

        knob = _bisect(lambda at: self.count(attention(at), widths(at)) <= budget, lowest, highest)
        heads = attention(knob)
        # Several layers may have lost a group at once, and FFNs can't take up more than they still have: then a group
        # comes back, and FFNs pay for it, in a small model perhaps more than a step.
        while "ffn" in self.problem.units and self.count(heads, widths(lowest)) < budget:
            more = self._larger_heads(heads, [1 - loss for loss, _ in losses(knob)])
            if more is None or self.count(more, self._floors(widths(1.0))) > budget:
                break
            heads, highest = more, max(highest, 1.0)
        # Attention moves in steps of whole heads; what they left over goes to the FFNs in the same proportions.
        knob = _bisect(lambda at: self.count(heads, widths(at)) <= budget, lowest, highest)
        wanted = widths(knob)
        ffn = self._floors(wanted)
        # Floors may lift narrow layers above their share, and the others then give up the difference.
        while self.count(heads, ffn) > budget:
            if knob >= highest:
                heads = self._tighten(heads)
            knob = min(knob + (highest - lowest) / 4096, highest)
            wanted = widths(knob)
            ffn = self._floors(wanted)
        ffn = self._grow(heads, wanted, ffn)
        # Where FFNs are not pruned, or are whole, nothing else takes up what whole heads leave over.
        kept = [1 - loss for loss, _ in losses(knob)]
        while more := self._larger_heads(heads, kept, budget - self.count(heads, ffn)):
            heads = more
        return tuple(LayerShape(kv * group, kv, width) for (kv, group), width in zip(heads, ffn, strict=True))

    def attention_at(self, index: int, loss: float) -> Heads:
        """The heads with the fewest parameters that keep at least a share 1 − ``loss`` of the layer's query heads.

        A KV group goes only when the share has lost all of it, as in Adapt-Pruner's code.
        """
        layer = self.current.layers[index]
        wanted = (1 - loss) * self.source.layers[index].num_attention_heads
        fitting = [heads for heads in self._choices(index) if heads[0] * heads[1] >= wanted - 1e-6]
        if index in self.problem.protected or not fitting:
            return layer.num_key_value_heads, layer.group_size
        return min(fitting, key=lambda heads: (self._cost(heads), -heads[0]))

    def count(self, heads: Sequence[Heads], ffn: Sequence[float]) -> float:
        """Parameters of the whole model; FFN widths may be fractions."""
        fixed = self.source.with_layers(LayerShape(kv * group, kv, 1) for kv, group in heads)
        return fixed.parameters + sum(width - 1 for width in ffn) * self.source.ffn_channel_parameters

    def _choices(self, index: int) -> list[Heads]:
        """Heads allowed in a layer that can't get back what it has lost."""
        layer = self.current.layers[index]
        choices = self.problem.rounding.attention_choices(self.source.layers[index], self.problem.units)
        return [(kv, group) for kv, group in choices if kv <= layer.num_key_value_heads and group <= layer.group_size]

    def _cost(self, heads: Heads) -> int:
        kv, group = heads
        return self.source.attention_parameters(LayerShape(kv * group, kv, 1))

    def _keeps_ffn(self, index: int) -> bool:
        return index in self.problem.protected or "ffn" not in self.problem.units

    def _width_at(self, index: int, loss: float) -> float:
        width = float(self.current.layers[index].intermediate_size)
        if self._keeps_ffn(index):
            return width
        return min(width, self.source.layers[index].intermediate_size * (1 - loss))

    def _floors(self, wanted: Sequence[float]) -> list[int]:
        """The allowed FFN widths at or below what is wanted."""
        rounding = self.problem.rounding
        return [
            layer.intermediate_size
            if self._keeps_ffn(index)
            else min(layer.intermediate_size, rounding.ffn_down(width, dense.intermediate_size))
            for index, (dense, layer, width) in enumerate(
                zip(self.source.layers, self.current.layers, wanted, strict=True)
            )
        ]

    def _tighten(self, heads: list[Heads]) -> list[Heads]:
        """One step less attention in the layer that has most, for budgets below what the FFN floors leave."""
        best: tuple[int, int, Heads] | None = None
        for index, now in enumerate(heads):
            if index in self.problem.protected:
                continue
            cost = self._cost(now)
            # Multiples of heads may leave no choice that is smaller both ways: fewer KV heads of larger groups do too.
            smaller = [(less, choice) for choice in self._choices(index) if (less := self._cost(choice)) < cost]
            if smaller and (best is None or cost > best[0]):
                best = (cost, index, max(smaller)[1])
        if best is None:
            raise PrunekitError("No layer can shrink any further; ask for a larger target or lower the floors.")
        _, index, fewer = best
        return [*heads[:index], fewer, *heads[index + 1 :]]

    def _grow(self, heads: Sequence[Heads], wanted: Sequence[float], ffn: Sequence[int]) -> list[int]:
        """Hand out the rest of the budget, one rounding unit at a time, to the layer furthest below what it wanted."""
        grown = list(ffn)
        free = self.problem.budget - round(self.count(heads, ffn))
        queue = [(grown[index] - wanted[index], index) for index in range(len(grown)) if not self._keeps_ffn(index)]
        heapq.heapify(queue)
        while queue:
            _, index = heapq.heappop(queue)
            wider = self.problem.rounding.ffn_up(grown[index] + 1, self.source.layers[index].intermediate_size)
            cost = (wider - grown[index]) * self.source.ffn_channel_parameters
            if grown[index] < wider <= self.current.layers[index].intermediate_size and cost <= free:
                free -= cost
                grown[index] = wider
                heapq.heappush(queue, (wider - wanted[index], index))
        return grown

    def _larger_heads(
        self, heads: Sequence[Heads], kept: Sequence[float], free: float = float("inf")
    ) -> list[Heads] | None:
        """One step more attention, of at most ``free`` parameters, in the layer whose share of heads is furthest below
        ``kept``; None where there is no such step."""

        def shortfall(index: int) -> float:
            return heads[index][0] * heads[index][1] / self.source.layers[index].num_attention_heads - kept[index]

        unprotected = (index for index in range(len(heads)) if index not in self.problem.protected)
        for index in sorted(unprotected, key=shortfall):
            now = heads[index]
            larger = [
                (self._cost(choice) - self._cost(now), choice)
                for choice in self._choices(index)
                if choice[0] >= now[0] and choice[1] >= now[1] and choice != now
            ]
            if larger and min(larger)[0] <= free:
                return [*heads[:index], min(larger)[1], *heads[index + 1 :]]
        return None


def _bisect(fits: Callable[[float], bool], lowest: float, highest: float) -> float:
    """The smallest knob that fits (``highest`` where none does)."""
    if fits(lowest):
        return lowest
    for _ in range(60):
        middle = (lowest + highest) / 2
        if fits(middle):
            highest = middle
        else:
            lowest = middle
    return highest
