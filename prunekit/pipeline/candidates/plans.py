"""A plan for every size: the text is read once, loss curves are drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.pipeline.candidates.kept import Kept
from prunekit.pipeline.planning import plan_model
from prunekit.plan import Plan
from prunekit.plan.budgets import PARAMETERS
from prunekit.plan.rounding import RoundingConfig
from prunekit.pruning.planner import PlanConfig, Stage, planning_phases, read_task, round_phases, rounds_on_the_way
from prunekit.utils.phases.telling import unneeded
from prunekit.utils.progress import progress
from prunekit.utils.provenance import versions

if TYPE_CHECKING:
    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.pipeline.candidates.asked import Format

GGUF = "gguf"
# Of what plans say of themselves: with another number they are made anew.
_REASONS = 2


def check_sizes(source: Source, configs: Sequence[PlanConfig]) -> None:
    """Raises PrunekitError where one of the sizes is out of reach, before a model is loaded."""
    for config in configs:
        try:
            read_task(source, config)
        except PrunekitError as error:
            raise PrunekitError(f"{config.target.text}: {error}") from None


def share_left(source: Source, config: PlanConfig) -> float:
    """About which share of its blocks a size leaves: of a goal that counts no parameters, as much goes of these as of
    what it counts."""
    shape, gone = source.shape, 0.0
    for budget in read_task(source, config).budgets:
        counted = budget.dense / shape.block_parameters if budget.cost.name == PARAMETERS else 1.0
        gone = max(gone, budget.removed * counted)
    return min(1.0, max(0.0, 1 - gone))


def plan_for(source: Source, config: PlanConfig, dense: DenseModel, text: CalibrationText) -> Plan:
    """The plan that `prunekit plan` makes, on ``text``, which has been read; one that was made before is taken from the
    cache. The ``dense`` model may be used up. Raises PrunekitError as
    :func:`~prunekit.pruning.planner.compute_plan` does."""
    if (made := kept_plan(source, config, text)) is not None:
        return made
    stage = Stage(read_task(source, config).budgets, None, text, config.target.text)
    made = plan_model(source, config, dense, stage)
    kept, name = _place(source, config, text)
    kept.keep_plan(made, *name)
    return made


def kept_plan(source: Source, config: PlanConfig, text: CalibrationText) -> Plan | None:
    """The plan that was made before; None where there is none."""
    kept, name = _place(source, config, text)
    made = kept.plan(*name)
    # Its texts are called as they are called today.
    return made and replace(made, recipe=config.recipe.with_text(text.describe()["source"]), text=text)


def _place(source: Source, config: PlanConfig, text: CalibrationText) -> tuple[Kept, tuple[str, ...]]:
    """Where a plan is kept, and under which name."""
    from prunekit.models.source import pick_device

    recipe = config.recipe.to_dict() | {"calib": None}
    place = str(pick_device(config.device))
    table = None if config.target.table is None else config.target.table.fingerprint
    kept = Kept.of("plan", _REASONS, source.fingerprint, text.fingerprint, config.dtype, place, table, versions())
    return kept, (config.target.text, repr(sorted(recipe.items(), key=str)))


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


def phases_again(source: Source, configs: Sequence[PlanConfig]) -> tuple[str, ...]:
    """The phases in which loss curves are drawn again for the smallest of the sizes."""
    return max((_again(source, each) for each in configs), key=len)


def _again(source: Source, config: PlanConfig) -> tuple[str, ...]:
    return round_phases(config.recipe, len(rounds_on_the_way(source, config)))


def make_plans(
    source: Source,
    configs: Sequence[PlanConfig],
    format_: Format | None,
    dense: DenseModel,
    text: CalibrationText,
    title: str,
) -> tuple[list[Plan], list[float | None]]:
    """A plan for each size, and what the rounding that the ``format_`` wants costs there. What is measured for one
    serves the others, so it has phases of its own; the others share the phase ``title``."""
    todo = [each for each in configs if kept_plan(source, each, text) is None]
    # What is measured of the smallest is all that the others need.
    begun = max(todo, key=lambda each: len(rounds_on_the_way(source, each)), default=None)
    again = phases_again(source, configs)
    for each in (*planning_phases(configs[0].recipe), *again) if begun is None else again[len(_again(source, begun)) :]:
        unneeded(each, "not needed, for all plans are kept")
    first = None if begun is None else plan_for(source, begun, dense, text)
    plans, rounding = [], []
    with progress(title, len(configs)) as advance:
        for config in configs:
            done = first if config is begun else kept_plan(source, config, text)
            plans.append(done or plan_for(source, config, dense, text))
            wanted = format_ is not None and _wants_blocks(format_) and config.recipe.rounding.round_for != GGUF
            rounding.append(loss_of_rounding(source, config, dense, text, plans[-1]) if wanted else None)
            advance(kept=done is not None)
    return plans, rounding


def _wants_blocks(format_: Format) -> bool:
    """Whether rows of weights are to fill K-quants' blocks."""
    return format_.target.name == GGUF and "_k" in format_.dtype
