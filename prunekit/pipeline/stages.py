"""What `prunekit prune --recover` prunes: some of the way in every stage, or by a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prunekit.data.mixture import CalibrationText, calibration_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import load_tokenizer
from prunekit.pruning.planner import PlanConfig, Stage, compute_plan, read_task
from prunekit.pruning.stages import before_the_last, stage_shares
from prunekit.recovery.stages.run import Cut
from prunekit.recovery.training.run import told_by_content

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source
    from prunekit.plan import Plan

Solve = Callable[[DenseModel, "Plan"], "tuple[Plan, Mapping[str, torch.Tensor] | None]"]


class GoalCutter:
    """Prunes the dense ``source`` toward the target of ``config``, a part of the way in every stage, on one calibration
    text: where the model writes some of it, that is the dense one. ``solve`` computes what follows a plan.

    Raises PrunekitError where the target makes no sense or is out of reach.
    """

    def __init__(self, source: Source, config: PlanConfig, solve: Solve):
        self._source, self._config, self._solve = source, config, solve
        self._budgets = read_task(source, config).budgets
        self.removed = max(budget.removed for budget in self._budgets)
        target, recipe = config.target, config.recipe
        self.asked: dict[str, Any] = {
            "model": source.fingerprint,
            "goals": target.text,
            "context": target.context,
            "latency table": None if target.table is None else target.table.fingerprint,
            "recipe": {**recipe.to_dict(), "calib": told_by_content(recipe.calibration.source)},
            "precision": config.dtype,
        }
        self._text: CalibrationText | None = None
        self._let_go()

    def targets(self, stages: int) -> list[float]:
        shares = stage_shares(stages, self._source, self._config, self._budgets, self._dense, self._calibration())
        # What is out of reach is refused now, and not after hours.
        for number, share in enumerate(shares, start=1):
            config = self._of_stage((number, stages))
            read_task(self._source, config, Stage(self._budgets.part(share), None, self._calibration(), ""))
        return shares

    def cut(self, source: Source, so_far: Plan | None, target: float, stage: tuple[int, int]) -> Cut:
        config, text, (number, count) = self._of_stage(stage), self._calibration(), stage
        dense = self._dense if so_far is None else DenseModel(source, dtype=config.dtype, device=config.device)
        self._let_go()
        asked = config.target.text if number == count else f"{config.target.text}, stage {number} of {count}"
        plan = compute_plan(source, config, dense, Stage(self._budgets.part(target), so_far, text, asked))
        plan, weights = self._solve(dense, plan)
        if count > 1:
            history = [{"stage": number, **row} for row in plan.provenance["history"]]
            plan = replace(plan, provenance={**plan.provenance, "history": history})
        return Cut(plan, weights)

    def _of_stage(self, stage: tuple[int, int]) -> PlanConfig:
        number, count = stage
        if number == count:
            return self._config
        return replace(self._config, recipe=before_the_last(self._config.recipe))

    def _calibration(self) -> CalibrationText:
        if self._text is None:
            config = self._config.recipe.calibration
            self._text = calibration_text(config, load_tokenizer(self._source), self._dense)
        return self._text

    def _let_go(self) -> None:
        """Of the dense model, if it is in memory."""
        self._dense = DenseModel(self._source, dtype=self._config.dtype, device=self._config.device)


@dataclass(frozen=True)
class PlanCutter:
    """Prunes by a ``plan`` that has been made: in one stage. ``dense`` is the model in the precision in which is solved
    what the plan leaves."""

    plan: Plan
    dense: DenseModel
    solve: Solve
    removed: float = 0.0
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.plan.to_json().encode()).hexdigest()
        precision = {"precision": self.dense.dtype}
        object.__setattr__(self, "asked", {"model": self.dense.source.fingerprint, "plan": digest, **precision})

    def targets(self, stages: int) -> list[float]:
        if stages != 1:
            raise PrunekitError(
                "A plan says what is left in the end, and every stage decides that anew: leave out --stages, or give "
                "the target instead of --plan."
            )
        return [1.0]

    def cut(self, source: Source, so_far: Plan | None, target: float, stage: tuple[int, int]) -> Cut:
        return Cut(*self.solve(self.dense, self.plan))
