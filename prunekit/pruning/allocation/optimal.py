"""The widths of least expected loss: an exact choice over measured curves of every sub-layer."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.plan.allocations import OptimalConfig
from prunekit.plan.budgets import can_grow
from prunekit.plan.shape import Heads, LayerShape, ModelShape
from prunekit.pruning.allocation.base import ALLOCATION, Allocated, Problem, without_empty
from prunekit.pruning.allocation.knapsack import choose
from prunekit.pruning.allocation.rounds import on_the_way
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.allocation.units import agreed
from prunekit.pruning.curves.joined import joined
from prunekit.pruning.curves.loss_curves import LayerCurves, layer_shape
from prunekit.utils.advance import Advance
from prunekit.utils.phases.titles import WIDTHS
from prunekit.utils.progress import progress

# Widths of one FFN that the integer programme chooses among; what lies between them is settled afterwards.
_LEVELS = 48


def optimal(session: Session, problem: Problem, advance: Advance, config: OptimalConfig | None = None) -> Allocated:
    """Widths and units of least summed loss within the budgets, by curves (:mod:`prunekit.pruning.curves.loss_curves`)
    whose scale is measured (:mod:`prunekit.pruning.curves.scale`): a mixed-integer programme (HiGHS) picks heads and an
    FFN width for every layer, then FFNs take up what is left, the best gain a channel first. Where a lot goes, that is
    done for a part of the way first, and curves are drawn again on what is left (:mod:`.rounds`)."""
    config = config or OptimalConfig()
    curves = session.curves(advance, problem.units)
    history: list[dict[str, Any]] = []
    parts = on_the_way(session.source, problem, config.redraw_after) if session.further is not None else ()
    for number, part in enumerate(parts, start=1):
        shapes = solve(session.source, part, curves)
        pairs = enumerate(zip(curves, shapes, strict=True))
        keeps = agreed(tuple(curve.keep(index, shape) for index, (curve, shape) in pairs))
        history.append(_round(number, curves, shapes))
        left = session.after(keeps, number + 1)
        drawn = left.curves(advance, problem.units)
        left.let_go()
        curves = tuple(joined(*each) for each in zip(curves, keeps, drawn, strict=True))
    with progress(WIDTHS, 1) as step:
        shapes = solve(session.source, problem, curves)
        step()
    keeps = without_empty(
        curve.keep(keep.index, shape) for keep, curve, shape in zip(session.keeps, curves, shapes, strict=True)
    )
    return Allocated(keeps, (*history, _round(len(history) + 1, curves, shapes)), curves)


def _round(number: int, curves: Sequence[LayerCurves], shapes: Sequence[LayerShape]) -> dict[str, Any]:
    """What a plan's history tells of a round."""
    expected = sum(curve.loss(shape) for curve, shape in zip(curves, shapes, strict=True))
    return {"step": number, "expected_loss": round(expected, 6)}


def solve(source: ModelShape, problem: Problem, curves: Sequence[LayerCurves]) -> tuple[LayerShape, ...]:
    """The shapes of least summed loss within the budgets."""
    budgets = problem.held(source)
    heads = [_heads(source, problem, index) for index in range(len(curves))]
    widths = [_widths(problem, index, dense.intermediate_size) for index, dense in enumerate(source.layers)]
    losses, costs = [], []
    for index, curve in enumerate(curves):
        losses += [
            [curve.heads[each].loss for each in heads[index]],
            [curve.ffn.loss_at(width) for width in widths[index]],
        ]
        costs += [
            [[budget.cost.attention(index, each) for budget in budgets] for each in heads[index]],
            [[budget.cost.ffn(index, width) for budget in budgets] for width in widths[index]],
        ]
    taken = choose(losses, costs, [budget.limit - budget.cost.fixed for budget in budgets])
    if taken is None:
        raise PrunekitError(f"No widths meet the target of {budgets.text}; ask for a larger one.")
    shapes = [
        layer_shape(heads[index][taken[2 * index]], widths[index][taken[2 * index + 1]]) for index in range(len(curves))
    ]
    return _fill(source, problem, curves, shapes)


def _heads(source: ModelShape, problem: Problem, index: int) -> Sequence[Heads]:
    """What the attention of a layer can be."""
    dense = source.layers[index]
    if index in problem.protected:
        return [(dense.num_key_value_heads, dense.group_size)]
    return problem.rounding.attention_choices(dense, problem.units)


def _widths(problem: Problem, index: int, dense: int) -> list[int]:
    """At most about _LEVELS allowed widths, the floor and the whole among them, and 0 where the FFN may go."""
    if index in problem.protected:
        return [dense]
    rounding = problem.rounding
    grid = np.linspace(rounding.ffn_floor(dense), dense, _LEVELS) if "ffn" in problem.units else [dense]
    none = {0} if "ffn-layer" in problem.units else set()
    return sorted({rounding.ffn_down(float(width), dense) for width in grid} | none)


def _fill(
    source: ModelShape, problem: Problem, curves: Sequence[LayerCurves], shapes: Sequence[LayerShape]
) -> tuple[LayerShape, ...]:
    """Hand out what is left of the budgets: FFNs grow by one rounding unit at a time, the best gain a channel first;
    then heads come back where they fit."""
    made = list(shapes)
    before: list[LayerShape] = []
    # Heads may give back some of a budget (a measured latency needn't rise with them), and FFNs then take that up.
    while made != before:
        before = list(made)
        _wider_ffns(source, problem, curves, made)
        _more_heads(source, problem, curves, made)
    return tuple(made)


def _wider_ffns(source: ModelShape, problem: Problem, curves: Sequence[LayerCurves], shapes: list[LayerShape]) -> None:
    budgets = problem.held(source)
    left = budgets.left(shapes)
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
        grown = LayerShape(now.num_attention_heads, now.num_key_value_heads, wider)
        change = budgets.change(index, now, grown)
        if can_grow(change, left):
            left = tuple(free - more for free, more in zip(left, change, strict=True))
            shapes[index] = grown
            offer(index)


def _more_heads(source: ModelShape, problem: Problem, curves: Sequence[LayerCurves], shapes: list[LayerShape]) -> None:
    """Where FFNs can't take up what is left, heads do."""
    budgets = problem.held(source)
    while True:
        left = budgets.left(shapes)
        steps = []
        for index, now in enumerate(shapes):
            if index in problem.protected:
                continue
            for each in _heads(source, problem, index):
                shape = layer_shape(each, now.intermediate_size)
                more = source.attention_parameters(shape) - source.attention_parameters(now)
                gain = curves[index].loss(now) - curves[index].loss(shape)
                if more > 0 and gain >= 0 and can_grow(budgets.change(index, now, shape), left):
                    steps.append((gain / more, index, shape))
        if not steps:
            return
        _, index, shape = max(steps, key=lambda step: step[:2])
        shapes[index] = shape


ALLOCATION[OptimalConfig.name] = optimal
