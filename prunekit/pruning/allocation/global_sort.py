"""All units of the model sorted together: the cheapest loss a parameter goes first."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import torch

from prunekit.plan.allocations import GlobalConfig
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.allocation.base import ALLOCATION, Allocated, Problem
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.importance.scores import LayerScores, Scores
from prunekit.utils.advance import Advance


def standardised(scores: Scores) -> Scores:
    """z-scores within each layer, heads and FFN channels apart (FLAP's adaptive structure search, arXiv 2312.11983).

    FLAP standardises channels and then takes the mean over each head's: heads deviate less than channels, and few heads
    no more than many. Where the spread of channels isn't known, heads are standardised among themselves.
    """

    def z(values: torch.Tensor, spread: float | None = None) -> torch.Tensor:
        spread = values.std(correction=0).item() if spread is None else spread
        return (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)

    layers = []
    for layer in scores.layers:
        spread, size = layer.channel_spread, 1
        if spread is not None:
            # A group's score is a sum, and the spread is of a mean.
            size = layer.query_heads.shape[1]
        layers.append(LayerScores(z(layer.kv_heads / size, spread), z(layer.query_heads, spread), z(layer.ffn)))
    return replace(scores, layers=tuple(layers))


@dataclass(order=True)
class _Move:
    """One thing that could go next: of ``kind`` in ``layer``, down to the shape ``after``."""

    value: float
    layer: int
    kind: str
    before: LayerShape = field(compare=False)
    after: LayerShape = field(compare=False)


class _Ladder:
    """The moves of one layer, each the cheapest of its kind from the shape the layer has."""

    def __init__(self, index: int, source: ModelShape, scores: LayerScores, problem: Problem, standardise: bool):
        self._index, self._source, self._problem = index, source, problem
        self._dense, self._standardise = source.layers[index], standardise
        self._ffn = torch.sort(scores.ffn, stable=True).values.cumsum(0)
        self._kv = torch.sort(scores.kv_heads, stable=True).values
        # Falling inside each group: what goes next is each group's weakest head.
        self._query = torch.sort(scores.query_heads, dim=1, descending=True, stable=True).values.sum(0)
        self._choices = set(problem.rounding.attention_choices(self._dense, problem.units))

    def _ffn_sum(self, width: int) -> float:
        removed = self._dense.intermediate_size - width
        return self._ffn[removed - 1].item() if removed else 0.0

    def moves(self, now: LayerShape) -> list[_Move]:
        made = []
        width, kv, group = now.intermediate_size, now.num_key_value_heads, now.group_size
        if "ffn" in self._problem.units and width > self._problem.rounding.ffn_floor(self._dense.intermediate_size):
            narrower = self._problem.rounding.ffn_down(width - 1, self._dense.intermediate_size)
            if narrower < width:
                loss = self._ffn_sum(narrower) - self._ffn_sum(width)
                made.append(self._move("ffn", loss, width - narrower, now, LayerShape(kv * group, kv, narrower)))
        fewer_kv = [k for k, g in self._choices if g == group and k < kv]
        if fewer_kv:
            k = max(fewer_kv)
            total = self._dense.num_key_value_heads
            loss = self._kv[total - kv : total - k].sum().item()
            made.append(self._move("kv", loss, kv - k, now, LayerShape(k * group, k, width)))
        fewer_query = [g for k, g in self._choices if k == kv and g < group]
        if fewer_query:
            g = max(fewer_query)
            loss = self._query[g:group].sum().item() * kv / self._dense.num_key_value_heads
            made.append(self._move("query", loss, (group - g) * kv, now, LayerShape(kv * g, kv, width)))
        if not (fewer_kv or fewer_query) and (after := self._next_cheaper(now)) is not None:
            loss = self._kept(now) - self._kept(after)
            made.append(
                self._move("heads", loss, max(now.num_attention_heads - after.num_attention_heads, 1), now, after)
            )
        return made

    def _next_cheaper(self, now: LayerShape) -> LayerShape | None:
        """Multiples of heads may leave no choice along one axis: then the largest that costs less, both changed."""
        cost = self._source.attention_parameters
        shapes = [LayerShape(k * g, k, now.intermediate_size) for k, g in self._choices]
        cheaper = [shape for shape in shapes if cost(shape) < cost(now)]
        return max(cheaper, key=lambda shape: (cost(shape), shape.num_key_value_heads), default=None)

    def _kept(self, shape: LayerShape) -> float:
        """Score of the best query heads that ``shape`` has room for."""
        share = shape.num_key_value_heads / self._dense.num_key_value_heads
        return self._query[: shape.group_size].sum().item() * share

    def _move(self, kind: str, loss: float, units: int, before: LayerShape, after: LayerShape) -> _Move:
        # z-scores have no unit and may be negative, so they compare by their mean, not by loss a parameter.
        cost = self._source.layer_parameters(before) - self._source.layer_parameters(after)
        return _Move(loss / (units if self._standardise else cost), self._index, kind, before, after)


def greedy(session: Session, problem: Problem, advance: Advance, config: GlobalConfig | None = None) -> Allocated:
    """Removes rounding units of FFN width, KV groups and query heads in the order of score per parameter (or z-score,
    where ``standardise`` asks for it) until the budget is met, then gives back what still fits, best first."""
    standardise = (config or GlobalConfig()).standardise
    scores = session.score()
    advance()
    judged = standardised(scores) if standardise else scores
    source = session.source
    ladders = [_Ladder(index, source, layer, problem, standardise) for index, layer in enumerate(judged.layers)]
    shapes = list(source.layers)
    count = source.parameters
    queue = [
        move
        for index in range(len(shapes))
        if index not in problem.protected
        for move in ladders[index].moves(shapes[index])
    ]
    heapq.heapify(queue)
    done: list[_Move] = []
    while count > problem.budget and queue:
        move = heapq.heappop(queue)
        if shapes[move.layer] != move.before:
            continue
        shapes[move.layer] = move.after
        count -= source.layer_parameters(move.before) - source.layer_parameters(move.after)
        done.append(move)
        for following in ladders[move.layer].moves(move.after):
            heapq.heappush(queue, following)
    _give_back(source, problem, shapes, problem.budget - count, done)
    return Allocated(session.select(scores, tuple(shapes)), ({"step": 1, "loss": scores.loss},))


def _give_back(source: ModelShape, problem: Problem, shapes: list[LayerShape], free: int, done: list[_Move]) -> None:
    """Put back the most valuable steps that the rest of the budget holds, wherever one fits."""
    grown = True
    while grown:
        grown = False
        for move in reversed(done):
            now = shapes[move.layer]
            wider = _one_step_back(source.layers[move.layer], now, move.kind, problem)
            cost = source.layer_parameters(wider) - source.layer_parameters(now)
            if 0 < cost <= free:
                shapes[move.layer] = wider
                free -= cost
                grown = True


def _one_step_back(dense: LayerShape, now: LayerShape, kind: str, problem: Problem) -> LayerShape:
    """``now`` with the next larger allowed width of ``kind``, or as it is."""
    kv, group, ffn = now.num_key_value_heads, now.group_size, now.intermediate_size
    choices = problem.rounding.attention_choices(dense, problem.units)
    if kind == "ffn" and ffn < dense.intermediate_size:
        ffn = problem.rounding.ffn_up(ffn + 1, dense.intermediate_size)
    elif kind == "kv":
        kv = min((k for k, g in choices if g == group and k > kv), default=kv)
    elif kind == "query":
        group = min((g for k, g in choices if k == kv and g > group), default=group)
    return LayerShape(kv * group, kv, ffn)


ALLOCATION[GlobalConfig.name] = greedy
