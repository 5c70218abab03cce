"""When loss curves are drawn again: what a sub-layer is worth depends on what the others have lost.

Where a lot goes, curves of the dense model say too little of what the last units cost. So widths are chosen for a part
of the way, and curves drawn again on what that leaves, refitted. The parts don't depend on where the way ends: plans
for several sizes share them.
"""

from __future__ import annotations

from dataclasses import replace

from prunekit.plan.allocations import MEASURED
from prunekit.plan.budgets import Budgets
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import ModelShape
from prunekit.pruning.allocation.base import Problem

# Widths on the way are multiples of this, or of a part of the narrowest FFN where that is narrow. Those at the end keep
# to what was asked for, and have any size to choose from.
_MULTIPLE, _WIDTHS = 64, 16


def redrawn_at(budgets: Budgets, redraw_after: float) -> tuple[float, ...]:
    """The shares of the layers that have gone when curves are drawn again, on the way to ``budgets``. The last part of
    the way is at least half as long as the others, or nothing would be gained."""
    count = int(budgets.removed_of_layers / redraw_after - 0.5 + 1e-9)
    return tuple(round(number * redraw_after, 6) for number in range(1, count + 1))


def on_the_way(source: ModelShape, problem: Problem, redraw_after: float) -> tuple[Problem, ...]:
    """What is asked of widths in each round but the last. Whole sub-layers go in that one alone: a model that lacks
    some has no curves of them."""
    units = tuple(unit for unit in problem.units if unit not in MEASURED)
    narrowest = min((layer.intermediate_size for layer in source.layers if layer.intermediate_size), default=0)
    rounding = Rounding(ffn_multiple=max(1, min(_MULTIPLE, narrowest // _WIDTHS)))
    budgets = problem.held(source)
    made: list[Problem] = []
    for gone in redrawn_at(budgets, redraw_after) if units else ():
        part = replace(problem, units=units, rounding=rounding, budgets=budgets.after(gone))
        if not part.held(source).fit(rounding.floor(source, units, problem.protected).layers):
            break
        made.append(part)
    return tuple(made)
