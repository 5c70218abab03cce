"""What `prunekit prune` does between the plan and the rebuild, where the plan asks for it: refit, then rescaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.recovery.refit import Refitted, layer_weights, refit, refit_work
from prunekit.recovery.rescale import final_hidden, rescale, split_text
from prunekit.utils.phases.titles import REFIT, RESCALING
from prunekit.utils.progress import aside, progress

if TYPE_CHECKING:
    import torch

    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.plan import Plan
    from prunekit.plan.recipe import Recipe


def refit_plan(
    dense: DenseModel, plan: Plan, recipe: Recipe, calibration: CalibrationText, batch_size: int | None = None
) -> Refitted:
    """Solve what ``plan`` leaves of the ``dense`` model anew by its ``recipe``, on the ``calibration`` text that the
    plan was made with (:func:`prunekit.data.from_plan.text_of`), and tune its scales on a part of that text which the
    refit did not see, where the recipe says so. The model is used up.

    Where its dtype was left to be chosen, CPUs made for it may compute products in bfloat16. Raises PrunekitError where
    something is not finite.
    """
    config, scales = recipe.refit, recipe.rescale
    assert config is not None, "the recipe asks for no refit"
    ids = calibration.input_ids
    batch_size = batch_size or recipe.calibration.batch_size
    model, family, fast = dense.take(), dense.source.family, dense.dtype == "auto"

    def solve(text: torch.Tensor) -> Refitted:
        steps = 2 * plan.source.num_hidden_layers
        with progress(REFIT, steps, work=refit_work(plan, text.numel()), tokens=text.numel()) as advance:
            return refit(
                model,
                family,
                plan.source,
                plan.layers,
                text,
                config,
                batch_size=batch_size,
                fast=fast,
                advance=advance,
            )

    if scales is None:
        return solve(ids)
    ids, kept_back = split_text(scales, ids, calibration.written)
    # While the model is still the dense one.
    with aside("the dense model's answers"):
        wanted = final_hidden(model, kept_back, scales.batch_size, fast)
    made = solve(ids)
    with progress(RESCALING, scales.steps(len(kept_back)), tokens=kept_back.numel()) as advance:
        made.rescaled = rescale(
            model,
            kept_back,
            wanted,
            scales,
            seed=recipe.seed,
            fast=fast,
            advance=advance,
        )
    made.weights = layer_weights(model, plan.layers)
    return made
