"""Which phases planning and pruning have."""

from __future__ import annotations

from prunekit.data.mixture import text_phases
from prunekit.plan import Plan
from prunekit.plan.recipe import Recipe
from prunekit.pruning.planner import plan_phases
from prunekit.utils.phases.titles import BIASES, REFIT, RESCALING, TURNING, WRITING


def solve_phases(recipe: Recipe) -> tuple[str, ...]:
    """What is computed between the plan and the rebuild."""
    if recipe.refit is not None:
        return (REFIT,) if recipe.rescale is None else (REFIT, RESCALING)
    return (BIASES,) if recipe.method.compensates else ()


def prune_phases(asked: Recipe | Plan, computes: bool) -> tuple[str, ...]:
    """Of a pruning by a recipe, or by a plan that was made, which ``computes`` something where the first word holds."""
    if isinstance(asked, Plan):
        recipe = asked.read_recipe()
        if recipe is None or not computes:
            return (WRITING,)
        # A plan that was just made has its text with it.
        text = () if asked.text is not None else text_phases(recipe.calibration.source)
        return (*text, *solve_phases(recipe), WRITING)
    if asked.method.rotates:
        return (*text_phases(asked.calibration.source), TURNING, WRITING)
    return (*plan_phases(asked), *solve_phases(asked), WRITING)
