"""How far each of several stages goes, where a model is pruned a little, trained a little, and pruned again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.plan.allocations import MEASURED
from prunekit.plan.budgets import Budgets
from prunekit.plan.recipe import Recipe
from prunekit.pruning.allocation.optimal import solve
from prunekit.pruning.planner import PlanConfig, Stage, draw_curves, prepare

if TYPE_CHECKING:
    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source

# Halvings of the way that is left: a thousandth of it is told apart.
_HALVINGS = 10


def equal_steps(stages: int) -> list[float]:
    """Shares of the way from the dense model to its target, alike for each of ``stages``."""
    return [number / stages for number in range(1, stages + 1)]


def equal_losses(stages: int, loss: Callable[[float], float]) -> list[float]:
    """Shares of the way between which the predicted ``loss``, a rising function of the share, rises alike."""
    whole = loss(1.0)
    shares: list[float] = []
    for number in range(1, stages):
        low, high = (shares or [0.0])[-1], 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if loss(middle) < whole * number / stages else (low, middle)
        shares.append(high)
    return [*shares, 1.0]


def stage_shares(
    stages: int, source: Source, config: PlanConfig, budgets: Budgets, dense: DenseModel, text: CalibrationText
) -> list[float]:
    """How far along the way to ``budgets`` each of ``stages`` goes, rising to 1: so that what the ``dense`` model of
    ``source`` is expected to lose rises alike in each, by its loss curves, which are drawn on ``text``. Methods that
    draw none take equal steps. Raises PrunekitError as :func:`prunekit.pruning.planner.compute_plan` does."""
    method = config.recipe.method
    if stages == 1 or not method.allocation.draws_curves:
        return equal_steps(stages)
    made = prepare(source, config, dense, Stage(budgets, None, text, config.target.text))
    curves = draw_curves(made, method)

    def loss(share: float) -> float:
        problem = replace(made.task.problem, budgets=budgets.part(share))
        shapes = solve(made.session.source, problem, curves)
        return sum(curve.loss(shape) for curve, shape in zip(curves, shapes, strict=True))

    return equal_losses(stages, loss)


def before_the_last(recipe: Recipe) -> Recipe:
    """``recipe`` for all stages but the last one: a model that lacks a whole sub-layer can't be scored again, so these
    go at the end.

    Raises PrunekitError where nothing else may go.
    """
    units = tuple(unit for unit in recipe.method.units if unit not in MEASURED)
    if not units:
        raise PrunekitError(
            f"Whole sub-layers go in the last stage alone, and units allows nothing else "
            f"({', '.join(recipe.method.units)}); say --stages 1, or add other units."
        )
    return replace(recipe, method=replace(recipe.method, units=units))
