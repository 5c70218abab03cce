"""What `prunekit prune --recover` prunes: some of the way in every stage, or by a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.data.mixture import CalibrationText, calibration_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import load_tokenizer
from prunekit.pipeline.asked import Recovery, check_training_dtype
from prunekit.pipeline.phases import solve_phases
from prunekit.pipeline.planning import plan_model
from prunekit.plan import Plan
from prunekit.plan.goals import parse_count
from prunekit.plan.training import recovery_of
from prunekit.pruning.planner import (
    PlanConfig,
    Stage,
    planning_phases,
    read_task,
    round_phases,
    rounds_on_the_way,
)
from prunekit.pruning.stages import before_the_last, stage_shares
from prunekit.recovery.stages.run import Cut, Cutter, prune_and_train
from prunekit.recovery.stages.shares import check_stages
from prunekit.recovery.training.run import Budget, Recovered, told_by_content
from prunekit.utils.phases.telling import phases

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source
    from prunekit.plan.training import StagesConfig, TextConfig, TrainingConfig

Solve = Callable[[DenseModel, Plan], "tuple[Plan, Mapping[str, torch.Tensor] | None]"]


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
        part = Stage(self._budgets.part(target), so_far, text, asked)
        again = round_phases(config.recipe, len(rounds_on_the_way(source, config, part)))
        with phases(*planning_phases(config.recipe), *again, *solve_phases(config.recipe)):
            plan = plan_model(source, config, dense, part)
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


class PlanCutter:
    """Prunes by a ``plan`` that has been made: in one stage. ``dense`` is the model in the precision in which is solved
    what the plan leaves."""

    def __init__(self, plan: Plan, dense: DenseModel, solve: Solve):
        self._plan, self._dense, self._solve = plan, dense, solve
        self.removed = 1 - plan.share_of_parameters
        digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
        self.asked: dict[str, Any] = {"model": dense.source.fingerprint, "plan": digest, "precision": dense.dtype}

    def targets(self, stages: int) -> list[float]:
        assert stages == 1, "every stage would need a plan of its own"
        return [1.0]

    def cut(self, source: Source, so_far: Plan | None, target: float, stage: tuple[int, int]) -> Cut:
        return Cut(*self._solve(self._dense, self._plan))


@dataclass(frozen=True)
class Asked:
    """What a recovery asks for, checked."""

    budget: Budget
    config: TrainingConfig
    text: TextConfig
    turns: StagesConfig
    stages: int | None
    loop: str | None


def read_recovery(recovery: Recovery, asked: PlanConfig | Plan, loop: str | None, dtype: str) -> Asked:
    """What ``recovery`` asks for of what is ``asked``, with the defaults of the ``loop`` of that name. Raises
    PrunekitError where something makes no sense, before a model is looked for."""
    recipe = asked.read_recipe() if isinstance(asked, Plan) else asked.recipe
    if recipe is not None and recipe.method.rotates:
        raise PrunekitError(
            f"{recipe.method.name} removes no units that stages could take turns with; prune without --recover, then "
            "train the result with prunekit recover."
        )
    tokens = None if recovery.tokens is None else parse_count(str(recovery.tokens), "--tokens")
    config, text, turns = recovery_of(recovery.text, recipe.seed if recipe else None, recovery.settings, loop)
    check_stages(recovery.stages)
    check_training_dtype(dtype)
    stages = recovery.stages
    if isinstance(asked, Plan):
        if stages not in (None, 1):
            raise PrunekitError(
                "A plan says what is left in the end, and every stage decides that anew: leave out --stages, or give "
                "the target instead of --plan."
            )
        stages = 1
    return Asked(Budget(tokens, recovery.minutes), config, text, turns, stages, loop)


def prune_and_recover(
    source: Source,
    out: Path,
    asked: PlanConfig | Plan,
    training: Asked,
    recovery: Recovery,
    solve: Solve,
    *,
    dtype: str,
    device: str,
    **options: Any,
) -> Recovered:
    """Prune the dense ``source`` as is ``asked``, by a target or a plan, and train what is left, in turns. ``solve``
    computes what follows a plan; ``options`` are those of :func:`prunekit.recovery.stages.run.prune_and_train`.
    Raises PrunekitError as that does.
    """
    if isinstance(asked, Plan):
        cutter: Cutter = PlanCutter(asked, DenseModel(source, dtype=dtype, device=device), solve)
    else:
        cutter = GoalCutter(source, asked, solve)
    return prune_and_train(
        source,
        out,
        cutter,
        stages=training.stages,
        text=training.text,
        budget=training.budget,
        config=training.config,
        turns=training.turns,
        loop=training.loop,
        dtype=dtype,
        device=device,
        checkpoint_minutes=recovery.checkpoint_minutes,
        listener=recovery.listener,
        **options,
    )
