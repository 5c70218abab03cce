"""A plan for every size: the text is read once, loss curves are drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.pipeline.candidates.kept import Kept
from prunekit.plan import Plan
from prunekit.plan.rounding import RoundingConfig
from prunekit.pruning.planner import PlanConfig, Stage, compute_plan, read_task
from prunekit.utils.provenance import versions

if TYPE_CHECKING:
    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source

GGUF = "gguf"


def check_sizes(source: Source, configs: Sequence[PlanConfig]) -> None:
    """Raises PrunekitError where one of the sizes is out of reach, before a model is loaded."""
    for config in configs:
        try:
            read_task(source, config)
        except PrunekitError as error:
            raise PrunekitError(f"{config.target.text}: {error}") from None


def plan_for(source: Source, config: PlanConfig, dense: DenseModel, text: CalibrationText) -> Plan:
    """The plan that `prunekit plan` makes, on ``text``, which has been read; one that was made before is taken from the
    cache. The ``dense`` model may be used up. Raises PrunekitError as
    :func:`~prunekit.pruning.planner.compute_plan` does."""
    from prunekit.models.source import pick_device

    recipe = config.recipe.to_dict() | {"calib": None}
    kept = Kept.of(
        "plan", source.fingerprint, text.fingerprint, config.dtype, str(pick_device(config.device)), versions()
    )
    name = (config.target.text, repr(sorted(recipe.items(), key=str)))
    if (made := kept.plan(*name)) is not None:
        # Its texts are called as they are called today.
        return replace(made, recipe=config.recipe.with_text(text.describe()["source"]), text=text)
    stage = Stage(read_task(source, config).budgets, None, text, config.target.text)
    made = compute_plan(source, config, dense, stage)
    kept.keep_plan(made, *name)
    return made


def expected_loss(plan: Plan) -> float | None:
    """The loss that its curves predict, in nats a token before the refit; None of a method that draws none."""
    history = plan.provenance.get("history") or [{}]
    found = history[-1].get("expected_loss")
    return float(found) if isinstance(found, (int, float)) else None


def loss_of_rounding(
    source: Source, config: PlanConfig, dense: DenseModel, text: CalibrationText, plan: Plan
) -> float | None:
    """How much more loss (nats a token, by the curves) the widths that suit K-quants cost at the same size than those
    of ``plan``. None where the method draws no curves, or such widths can't meet the size."""
    mine = expected_loss(plan)
    if mine is None:
        return None
    own = config.recipe.rounding
    rounding = RoundingConfig(round_for=GGUF, min_ffn=own.min_ffn, kv_multiple=own.kv_multiple)
    try:
        other = plan_for(source, replace(config, recipe=replace(config.recipe, rounding=rounding)), dense, text)
    except PrunekitError:
        return None
    theirs = expected_loss(other)
    return None if theirs is None else theirs - mine
