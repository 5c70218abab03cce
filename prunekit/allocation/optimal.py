"""The widths of least expected loss: an exact choice over measured curves of every sub-layer."""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from prunekit.allocation.base import ALLOCATION, Advance, Allocated, Problem, without_empty
from prunekit.allocation.measure import measured
from prunekit.curves import LayerCurves, layer_shape
from prunekit.errors import PrunekitError
from prunekit.session import Session
from prunekit.shape import Heads, LayerShape, ModelShape

# Widths of one FFN that the integer programme chooses among; what lies between them is settled afterwards.
_LEVELS = 48
_SECONDS = 60.0
_GAP = 1e-4


@dataclass(frozen=True)
class _Choice:
    """One thing a sub-layer can be: query heads and KV heads, or an FFN width; what it loses and costs."""

    layer: int
    what: Heads | int
    loss: float
    parameters: int


def optimal(session: Session, problem: Problem, advance: Advance) -> Allocated:
    """Widths and units of least summed loss within the budget, by curves (:mod:`prunekit.curves`) whose scale is
    measured (:mod:`prunekit.allocation.measure`): a mixed-integer programme (HiGHS) picks heads and an FFN width for
    every layer, then FFNs take up what is left, the best gain a parameter first."""
    levels = session.levels(advance)
    fitness = session.fitness(levels)
    try:
        curves = measured(session.source, levels, fitness, advance, problem.units).curves
    finally:
        fitness.close()
    shapes = solve(session.source, problem, curves)
    keeps = without_empty(
        curve.keep(keep.index, shape) for keep, curve, shape in zip(session.keeps, curves, shapes, strict=True)
    )
    expected = sum(curve.loss(shape) for curve, shape in zip(curves, shapes, strict=True))
    return Allocated(keeps, ({"step": 1, "expected_loss": round(expected, 6)},))


def solve(source: ModelShape, problem: Problem, curves: Sequence[LayerCurves]) -> tuple[LayerShape, ...]:
    """The shapes of least summed loss within the budget."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    groups = [group for index in range(len(curves)) for group in _choices(source, problem, index, curves[index])]
    choices = [choice for group in groups for choice in group]
    fixed = source.embedding_parameters
    rows = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    one_each = coo_matrix((np.ones(len(choices)), (rows, np.arange(len(choices)))), (len(groups), len(choices)))
    # In units of one channel, so that the solver's tolerances are far below a unit.
    unit = source.ffn_channel_parameters
    costs = np.array([choice.parameters for choice in choices]) / unit
    with _silent():
        found = milp(
            np.array([choice.loss for choice in choices]),
            integrality=np.ones(len(choices)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each.tocsr(), 1, 1),
                LinearConstraint(costs[None], -np.inf, (problem.budget - fixed) / unit),
            ],
            options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
        )
    if found.x is None:
        raise PrunekitError(f"No widths meet the target of {problem.budget:,} parameters; ask for a larger one.")
    heads: dict[int, Heads] = {}
    widths: dict[int, int] = {}
    for choice, taken in zip(choices, found.x > 0.5, strict=True):
        if taken and isinstance(choice.what, tuple):
            heads[choice.layer] = choice.what
        elif taken and isinstance(choice.what, int):
            widths[choice.layer] = choice.what
    return fill(source, problem, curves, [layer_shape(heads[index], widths[index]) for index in range(len(curves))])


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS prints some lines past Python, which would stand in the middle of what --json prints."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _choices(source: ModelShape, problem: Problem, index: int, curve: LayerCurves) -> list[list[_Choice]]:
    """What the attention, and what the FFN of a layer can be."""
    dense = source.layers[index]
    whole: Heads = (dense.num_key_value_heads, dense.group_size)
    heads = [whole] if index in problem.protected else attention_options(source, problem, index, curve)
    attention = [
        _Choice(index, each, curve.heads[each].loss, source.attention_parameters(layer_shape(each, 1)))
        for each in heads
    ]
    ffn = [
        _Choice(index, width, curve.ffn.loss_at(width), source.ffn_parameters(layer_shape((0, 0), width)))
        for width in _widths(problem, index, dense.intermediate_size)
    ]
    return [attention, ffn]


def attention_options(source: ModelShape, problem: Problem, index: int, curve: LayerCurves) -> list[Heads]:
    """The heads that the rounding allows a layer, with merges only where they can pay: where no cut has at most as many
    parameters and KV heads and loses at most as much."""
    choices = problem.rounding.attention_choices(source.layers[index], problem.units)

    def price(heads: Heads) -> tuple[float, ...]:
        return source.attention_parameters(layer_shape(heads, 1)), heads[0], curve.heads[heads].loss

    cuts = [price(heads) for heads in choices if not curve.heads[heads].merged]

    def pays(heads: Heads) -> bool:
        return not any(all(a <= b for a, b in zip(cut, price(heads), strict=True)) for cut in cuts)

    return [heads for heads in choices if not curve.heads[heads].merged or pays(heads)]


def _widths(problem: Problem, index: int, dense: int) -> list[int]:
    """At most about _LEVELS allowed widths, the floor and the whole among them, and 0 where the FFN may go."""
    if index in problem.protected:
        return [dense]
    rounding = problem.rounding
    grid = np.linspace(rounding.ffn_floor(dense), dense, _LEVELS) if "ffn" in problem.units else [dense]
    none = {0} if "ffn-layer" in problem.units else set()
    return sorted({rounding.ffn_down(float(width), dense) for width in grid} | none)


def fill(
    source: ModelShape, problem: Problem, curves: Sequence[LayerCurves], shapes: list[LayerShape]
) -> tuple[LayerShape, ...]:
    """Hand out what is left of the budget: FFNs grow by one rounding unit at a time, the best gain a parameter first;
    then heads come back where they fit."""
    free = problem.budget - source.with_layers(shapes).parameters
    queue: list[tuple[float, int, int]] = []

    def offer(index: int) -> None:
        dense, width = source.layers[index].intermediate_size, shapes[index].intermediate_size
        # An FFN that is gone stays away: its first channels would bring its norms back.
        if index in problem.protected or "ffn" not in problem.units or width in (0, dense):
            return
        wider = problem.rounding.ffn_up(width + 1, dense)
        gain = curves[index].ffn.loss_at(width) - curves[index].ffn.loss_at(wider)
        heapq.heappush(queue, (-gain / (wider - width), index, wider))

    for index in range(len(shapes)):
        offer(index)
    while queue:
        _, index, wider = heapq.heappop(queue)
        now = shapes[index]
        cost = (wider - now.intermediate_size) * source.ffn_channel_parameters
        if cost <= free:
            free -= cost
            shapes[index] = LayerShape(now.num_attention_heads, now.num_key_value_heads, wider)
            offer(index)
    return tuple(_more_heads(source, problem, curves, shapes, free))


def _more_heads(
    source: ModelShape, problem: Problem, curves: Sequence[LayerCurves], shapes: list[LayerShape], free: int
) -> list[LayerShape]:
    """Where FFNs can't take up what is left, heads do."""
    while True:
        steps = []
        for index, now in enumerate(shapes):
            if index in problem.protected:
                continue
            for each in attention_options(source, problem, index, curves[index]):
                shape = layer_shape(each, now.intermediate_size)
                cost = source.attention_parameters(shape) - source.attention_parameters(now)
                gain = curves[index].loss(now) - curves[index].loss(shape)
                if 0 < cost <= free and gain >= 0:
                    steps.append((gain / cost, index, cost, shape))
        if not steps:
            return shapes
        _, index, cost, shape = max(steps, key=lambda step: step[:2])
        shapes[index] = shape
        free -= cost


ALLOCATION["optimal"] = optimal
