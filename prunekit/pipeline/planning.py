"""Planning as every command does it: with the refit of models that loss curves are drawn again on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.pruning.planner import PlanConfig, Stage, compute_plan
from prunekit.recovery.recover import refit_left

if TYPE_CHECKING:
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.plan import Plan


def plan_model(source: Source, config: PlanConfig, dense: DenseModel, stage: Stage | None = None) -> Plan:
    """:func:`prunekit.pruning.planner.compute_plan`; the ``dense`` model may be used up."""
    return compute_plan(source, config, dense, stage, refit_left)
