"""What `prunekit prune` does between the plan and the rebuild, where the plan asks for it: refit, then rescaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit.recovery.refit import Refitted, layer_weights, refit, refit_work
from prunekit.recovery.rescale import final_hidden, rescale, split_text
from prunekit.utils.phases.titles import REFIT, RESCALING
from prunekit.utils.progress import aside, progress

if TYPE_CHECKING:
    import torch

    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.plan import LayerKeep, Plan
    from prunekit.plan.recipe import Recipe
    from prunekit.plan.shape import ModelShape


def refit_left(
    dense: DenseModel,
    shape: ModelShape,
    keeps: tuple[LayerKeep, ...],
    recipe: Recipe,
    ids: torch.Tensor,
    *,
    title: str = REFIT,
) -> Any:
    """What ``keeps`` leaves of the ``dense`` model of that ``shape``, solved anew on ``ids`` [N, L] as ``recipe`` says,
    in a phase of that ``title``. The model is used up; what is solved is what :func:`refit_plan` would solve on that
    text, not rescaled. Raises PrunekitError where something is not finite."""
    model = dense.take()
    _refit(dense, model, shape, keeps, recipe, ids, recipe.calibration.batch_size, title)
    return model


def _refit(
    dense: DenseModel,
    model: Any,
    shape: ModelShape,
    keeps: tuple[LayerKeep, ...],
    recipe: Recipe,
    ids: torch.Tensor,
    batch_size: int,
    title: str,
) -> Refitted:
    """The ``model`` that was taken of ``dense`` cut and solved anew, in a phase of that ``title``."""
    work, tokens = refit_work(shape, keeps, ids.numel()), ids.numel()
    with progress(title, 2 * shape.num_hidden_layers, work=work, tokens=tokens) as advance:
        return refit(
            model,
            dense.source.family,
            shape,
            keeps,
            ids,
            recipe.refit,
            batch_size=batch_size,
            fast=dense.dtype == "auto",
            advance=advance,
        )


def refit_plan(
    dense: DenseModel, plan: Plan, recipe: Recipe, calibration: CalibrationText, batch_size: int | None = None
) -> Refitted:
    """Solve what ``plan`` leaves of the ``dense`` model anew by its ``recipe``, on the ``calibration`` text that the
    plan was made with (:func:`prunekit.data.from_plan.text_of`), and tune its scales on a part of that text which the
    refit did not see, where the recipe says so. The model is used up.

    Where its dtype was left to be chosen, CPUs made for it may compute products in bfloat16. Raises PrunekitError where
    something is not finite.
    """
    scales = recipe.rescale
    assert recipe.refit is not None, "the recipe asks for no refit"
    ids = calibration.input_ids
    batch_size = batch_size or recipe.calibration.batch_size
    model, fast = dense.take(), dense.dtype == "auto"

    def solve(text: torch.Tensor) -> Refitted:
        return _refit(dense, model, plan.source, plan.layers, recipe, text, batch_size, REFIT)

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
