"""How far each of several stages prunes, and how a plan begins with what another one left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prunekit.checkpoint.rebuild import rebuild
from prunekit.data.mixture import calibration_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import Source, load_tokenizer, resolve
from prunekit.plan import Plan, compose
from prunekit.plan.budgets import Budget, Budgets, parameter_cost, shape_cost
from prunekit.plan.goals import parse_target
from prunekit.plan.recipe import Recipe
from prunekit.plan.shape import LayerShape
from prunekit.pruning.allocation.optimal import solve
from prunekit.pruning.planner import PlanConfig, Stage, compute_plan, draw_curves, prepare, read_task
from prunekit.pruning.stages import before_the_last, equal_losses, equal_steps, stage_shares
from tests.support.command import save_tiny, write_text
from tests.support.fake_session import SMOLLM2
from tests.support.tiny import random_plan

pytestmark = pytest.mark.usefixtures("single_threaded")
BRIEF = {"sequences": 8, "length": 16, "ffn_multiple": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return resolve(str(save_tiny(tmp_path_factory.mktemp("stages") / "tiny")))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text(tmp_path_factory.mktemp("text") / "text.txt", 12_000))


def _config(text: str, method: str, blocks: float, **changes: object) -> PlanConfig:
    recipe = Recipe.of(method, calib=text, **{**BRIEF, **changes})
    return PlanConfig(parse_target(blocks=str(blocks)), recipe, dtype="float32", device="cpu")


def test_losses_rise_alike() -> None:
    assert equal_losses(4, lambda share: share**2) == pytest.approx([0.5, 0.5**0.5, 0.75**0.5, 1.0], abs=2e-3)
    assert equal_losses(1, lambda share: share) == [1.0]
    assert equal_steps(4) == [0.25, 0.5, 0.75, 1.0]


def test_a_part_of_a_budget_lies_between_the_dense_model_and_what_is_asked() -> None:
    cost = parameter_cost(SMOLLM2)
    budget = Budget(cost, SMOLLM2.parameters // 2, SMOLLM2.parameters, "--params 0.5")
    assert budget.removed == pytest.approx(0.5)
    assert budget.part(1.0) == budget and budget.part(0.0).limit == SMOLLM2.parameters
    assert budget.part(0.5).limit == pytest.approx(SMOLLM2.parameters * 0.75, abs=1)
    wide = replace(budget, limit=2 * SMOLLM2.parameters)
    assert wide.removed == 0 and wide.part(0.3) == wide.part(1.0) == wide


def test_costs_of_layers_go_with_the_layers() -> None:
    """Such as measured times, which differ from layer to layer."""
    plain = shape_cost("parameters", SMOLLM2, lambda shape: shape.parameters)
    cost = replace(plain, ffn=lambda index, width: index * width)
    layer = LayerShape(9, 3, 10)
    made = Budgets((Budget(cost, 1, 2, ""),)).at([4, 7])
    assert made.layer(1, layer) == (cost.layer(7, layer),) and made.layer(0, layer) == (cost.layer(4, layer),)


@pytest.mark.parametrize("stages", [2, 4])
def test_stages_of_the_default_method_lose_alike_by_its_curves(model: Source, text: str, stages: int) -> None:
    config = _config(text, "prunekit", 0.5)
    dense = DenseModel(model, dtype="float32", device="cpu")
    words = calibration_text(config.recipe.calibration, load_tokenizer(model), dense)
    budgets = read_task(model, config).budgets
    shares = stage_shares(stages, model, config, budgets, dense, words)
    made = prepare(model, config, dense, Stage(budgets, None, words, ""))
    curves = draw_curves(made, config.recipe.method)
    losses = []
    for share in shares:
        shapes = solve(model.shape, replace(made.task.problem, budgets=budgets.part(share)), curves)
        losses.append(sum(curve.loss(shape) for curve, shape in zip(curves, shapes, strict=True)))
    assert losses == pytest.approx([losses[-1] * number / stages for number in range(1, stages + 1)], rel=0.02)
    assert shares[-1] == 1.0 and shares == sorted(shares) and shares[0] > 1 / stages
    # The last stage's plan is one for the whole goal.
    plan = compute_plan(model, config, dense, Stage(budgets.part(shares[-1]), None, words, "--blocks 0.5"))
    assert plan.layers == compute_plan(model, config).layers


@pytest.mark.parametrize("method", ["adapt-pruner", "magnitude", "wanda-sp", "flap", "fisher-global"])
def test_methods_without_curves_take_equal_steps(model: Source, text: str, method: str) -> None:
    config = _config(text, method, 0.5)
    words = object()
    assert stage_shares(3, model, config, None, None, words) == equal_steps(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["prunekit", "adapt-pruner", "magnitude", "shortgpt"])
def test_what_a_plan_left_is_pruned_on_by_the_dense_models_goals(
    method: str, model: Source, text: str, tmp_path: Path
) -> None:
    """Its layers differ, and some are gone: numbers and shares are those of the dense model all the same."""
    first = random_plan(model.shape, drop=(1,))
    rebuild(model, first, tmp_path / "first")
    source = resolve(str(tmp_path / "first"))
    brief = {"ffn_multiple": None} if method == "shortgpt" else {}
    config = _config(text, method, 0.4, protect_layers="3", **brief)
    dense = DenseModel(model, device="cpu")
    words = calibration_text(config.recipe.calibration, load_tokenizer(model), dense)
    budgets = read_task(model, config).budgets
    plan = compute_plan(source, config, None, Stage(budgets, first, words, "--blocks 0.4"))
    assert plan.source == source.shape and plan.provenance["protected_layers"] == [3]
    # Of what the first plan left it is layer 2.
    assert {keep.index: keep for keep in plan.layers}[2].shape == source.shape.layers[2]
    both = compose(first, plan)
    (budget,) = both.provenance["target"]["budgets"]
    assert budget["dense"] == model.shape.parameters and budget["pruned"] == both.shape.parameters
    assert both.share_of_blocks <= 0.4
    with pytest.raises(PrunekitError, match="Layer 9 can't be protected"):
        read_task(source, _config(text, method, 0.4, protect_layers="9", **brief), Stage(budgets, first, words, ""))


def test_a_goal_that_is_met_already_takes_nothing(model: Source, text: str, tmp_path: Path) -> None:
    for method in ("prunekit", "adapt-pruner", "magnitude", "flap"):
        config = _config(text, method, 0.9)
        budgets = read_task(model, config).budgets
        words = calibration_text(config.recipe.calibration, load_tokenizer(model), DenseModel(model, device="cpu"))
        first: Plan = random_plan(model.shape)
        rebuild(model, first, tmp_path / method)
        plan = compute_plan(resolve(str(tmp_path / method)), config, None, Stage(budgets, first, words, ""))
        assert not plan.cuts, method


def test_whole_sublayers_stay_until_the_last_stage() -> None:
    recipe = Recipe.of(units="ffn,kv,attention-layer")
    assert before_the_last(recipe).method.units == ("ffn", "kv")
    with pytest.raises(PrunekitError, match="say --stages 1"):
        before_the_last(Recipe.of(units="ffn-layer,attention-layer"))
