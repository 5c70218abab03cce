"""Loss curves that are drawn again: when, of what, and what becomes of those that were drawn before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.models.dense import DenseModel
from prunekit.models.families import FAMILIES
from prunekit.models.source import Source, resolve
from prunekit.pipeline import make_plan, prune
from prunekit.pipeline.planning import plan_model
from prunekit.plan import LayerKeep
from prunekit.plan.budgets import Budgets
from prunekit.plan.goals import parse_target
from prunekit.plan.recipe import Recipe
from prunekit.plan.rounding import Rounding
from prunekit.pruning.allocation.base import Problem
from prunekit.pruning.allocation.rounds import on_the_way, redrawn_at
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.curves.joined import joined
from prunekit.pruning.curves.loss_curves import NONE, FfnCurve, HeadChoice, LayerCurves
from prunekit.pruning.planner import PlanConfig, compute_plan, round_phases, rounds_on_the_way
from prunekit.recovery.recover import refit_left
from tests.support.command import save_tiny, write_text
from tests.support.fake_session import SMOLLM2
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("single_threaded")

BRIEF: dict[str, Any] = {"sequences": 8, "length": 32, "curve_tokens": 128, "fisher_tokens": 64, "scale_tokens": 64}


def problem(left: float, **options: Any) -> Problem:
    limit = SMOLLM2.embedding_parameters + int(left * SMOLLM2.block_parameters)
    options.setdefault("units", ("ffn", "kv", "query"))
    return Problem(limit, Rounding(), budgets=Budgets.of_parameters(SMOLLM2, limit), **options)


@pytest.mark.parametrize(
    ("left", "expected"),
    [(0.79, ()), (0.71, ()), (0.7, (0.2,)), (0.6, (0.2,)), (0.5, (0.2, 0.4)), (0.3, (0.2, 0.4, 0.6))],
)
def test_the_last_part_of_the_way_is_half_as_long_as_the_others(left: float, expected: tuple[float, ...]) -> None:
    assert redrawn_at(problem(left).held(SMOLLM2), 0.2) == pytest.approx(expected)
    assert redrawn_at(problem(left).held(SMOLLM2), 1.0) == ()


def test_sizes_share_the_way_whatever_they_are_rounded_to() -> None:
    small, large = problem(0.25, protected=frozenset({2})), problem(0.42, protected=frozenset({2}))
    coarse = Problem(small.budget, Rounding(ffn_multiple=256), small.units, small.protected, small.budgets)
    ways = [on_the_way(SMOLLM2, each, 0.2) for each in (small, large, coarse)]
    limits = [[(part.held(SMOLLM2).parameters, part.rounding) for part in parts] for parts in ways]
    assert limits[0][:2] == limits[1] and limits[2] == limits[0] and len(limits[0]) == 3
    # By parameters of the layers, whatever lies outside them.
    assert [part.held(SMOLLM2).removed_of_layers for part in ways[0]] == pytest.approx([0.2, 0.4, 0.6], abs=1e-6)
    assert all(part.protected == {2} for part in ways[0])


def test_whole_sub_layers_go_at_the_end_alone() -> None:
    (part,) = on_the_way(SMOLLM2, problem(0.6, units=("ffn", "attention-layer")), 0.2)
    assert part.units == ("ffn",)
    assert on_the_way(SMOLLM2, problem(0.6, units=("attention-layer",)), 0.2) == ()


def test_a_way_ends_where_floors_do() -> None:
    """FFNs alone are 62 % of the layers: by them, no more than that can go."""
    share = sum(map(SMOLLM2.ffn_parameters, SMOLLM2.layers)) / SMOLLM2.block_parameters
    parts = on_the_way(SMOLLM2, problem(0.01, units=("ffn",)), 0.2)
    assert len(parts) == int(share / 0.2)


def test_joined_by_hand() -> None:
    heads = {
        (2, 2): HeadChoice((0, 1), (0, 1, 2, 3), 0.0),
        (2, 1): HeadChoice((0, 1), (1, 2), 0.5),
        (1, 2): HeadChoice((1,), (2, 3), 1.0),
        (1, 1): HeadChoice((1,), (3,), 2.0),
    }
    before = LayerCurves(FfnCurve((2, 0, 3, 1), (0.0, 0.1, 0.3, 0.7, 1.5)), heads, {"ffn": (1.0,)})
    keep = LayerKeep(4, (0, 1), (1, 2), (1, 3))
    left = {
        (2, 1): HeadChoice((0, 1), (0, 1), 0.0),
        (1, 1): HeadChoice((0,), (0,), 3.0),
        NONE: HeadChoice((), (), 9.0),
    }
    made = joined(before, keep, LayerCurves(FfnCurve((1, 0), (0.0, 0.5, 2.0)), left, {"ffn": (5.0,)}))
    # 3 goes before 1 still, for it is place 1 of what is kept; both cost what they cost now.
    assert made.ffn == FfnCurve((2, 0, 3, 1), (0.0, 0.1, 0.3, 0.8, 2.3))
    assert made.heads == {
        **heads,
        (2, 1): HeadChoice((0, 1), (1, 2), 0.5),
        (1, 1): HeadChoice((0,), (1,), 3.5),
        NONE: HeadChoice((), (), 9.5),
    }
    assert made.alone == {"ffn": (1.0,)}
    assert made.keep(4, keep.shape) == keep


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    write_text(tmp_path / "text.txt", 20_000)
    return resolve(str(save_tiny(tmp_path / "model", num_hidden_layers=3, intermediate_size=96)))


def config(model: Source, blocks: str, **options: Any) -> PlanConfig:
    text = str(model.path.parent / "text.txt")
    recipe = Recipe.of(effort="quick", calib=text, **{**BRIEF, "redraw_after": 0.2, **options})
    return PlanConfig(parse_target(None, blocks, None), recipe, device="cpu")


def test_curves_of_the_last_round_are_of_the_refitted_model(model: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in a round is what a session of that model by itself measures."""
    asked = config(model, "0.6", ffn_multiple=1)
    seen: list[tuple[Any, ...]] = []

    def refit(*arguments: Any, **options: Any) -> Any:
        made = refit_left(*arguments, **options)
        seen.append((arguments, options, {name: each.clone() for name, each in made.state_dict().items()}))
        return made

    plan = compute_plan(model, asked, refit=refit)
    ((_, shape, keeps, recipe, ids), options, weights), *others = seen
    assert not others and options == {"title": "refit, round 2"} and recipe == asked.recipe
    assert ids.numel() == 256 and shape == model.shape
    alone = refit_left(DenseModel(model, device="cpu"), shape, keeps, recipe, ids).state_dict()
    assert all(torch.equal(alone[name], each) for name, each in weights.items())
    assert plan.share_of_blocks <= 0.6
    # Once was enough for another plan, which is another one.
    once = compute_plan(model, asked)
    assert once.layers != plan.layers and len(seen) == 1
    assert [row["step"] for row in plan.provenance["history"]] == [1, 2]


def test_what_was_drawn_serves_other_sizes_and_an_interrupted_run(
    model: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(model, "0.5", ffn_multiple=1)
    expected = make_plan(str(model.path), recipe=asked.recipe, device="cpu", blocks="0.5")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a model was cut again")

    for blocks, rounded in (("0.5", 1), ("0.52", 1), ("0.6", 8), ("0.5", 32)):
        told = config(model, blocks, ffn_multiple=rounded)
        made = compute_plan(model, told, refit=refuse)
        assert (made.layers == expected.layers) == ((blocks, rounded) == ("0.5", 1))


def test_plan_and_prune_agree_with_their_phases(model: Source, tmp_path: Path) -> None:
    asked = config(model, "0.5", ffn_multiple=1)
    plan = make_plan(str(model.path), recipe=asked.recipe, device="cpu", blocks="0.5")
    made = prune(str(model.path), tmp_path / "out", recipe=asked.recipe, device="cpu", blocks="0.5")
    assert made.plan.layers == plan.layers == plan_model(model, asked, DenseModel(model, device="cpu")).layers
    assert rounds_on_the_way(model, asked) == pytest.approx((0.2, 0.4), abs=1e-3)
    again = ("refit", "Fisher information", "loss curves")
    expected = tuple(f"{title}, round {number}" for number in (2, 3) for title in again)
    assert round_phases(asked.recipe, 2) == expected


@pytest.mark.parametrize("changed", [{"refit": False, "rescale": False}, {"redraw_after": 1.0}])
def test_without_a_refit_curves_are_drawn_once(model: Source, changed: dict[str, Any]) -> None:
    asked = config(model, "0.5", **changed)
    assert rounds_on_the_way(model, asked) == ()
    assert len(make_plan(str(model.path), recipe=asked.recipe, blocks="0.5").provenance["history"]) == 1


def test_a_model_that_was_let_go_is_not_asked() -> None:
    options = {"importance": "random", "layer_importance": None}
    session = Session(tiny_model("llama"), FAMILIES["llama"], lambda step: None, **options)
    session.let_go()
    with pytest.raises(RuntimeError, match="let go"):
        session.score()
