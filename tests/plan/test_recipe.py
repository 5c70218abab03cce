"""A recipe: one way from a method's name and what is changed to all settings, there and back, and plans before it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.plan.allocations import AdaptConfig, GlobalConfig
from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import Recipe, knobs, put_on_top, read_recipe
from prunekit.plan.settings import EFFORTS, RefitConfig, RescaleConfig

WRITTEN = Path(__file__).parents[1] / "golden" / "written"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_own_recipe(name: str) -> None:
    recipe = Recipe.of(name)
    assert recipe.method == METHODS[name]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adapt-pruner", {"steps": 8, "amplitude": 0.1, "importance": "fisher", "layer_importance": "loss"}),
        ("flap", {"allocation": "uniform", "attention_ratio": 0.5, "units": "ffn"}),
        ("magnitude", {"allocation": "adapt", "refit": True, "ridge": 1, "seed": 7}),
        ("prunekit", {"rescale": False, "units": ["ffn", "attention-layer"], "protect_layers": "0,2-3"}),
        ("prunekit", {"rescale_share": 0.5, "rescale_rate": 0.01, "calib": "a.txt:0.5,self:0.5", "sequences": 9}),
        ("llm-pruner", {"protect_layers": "none", "round_for": "tp=2", "ffn_multiple": 4}),
        ("prunekit", {"refit": False}),
        ("prunekit", {"effort": "quick", "curve_tokens": 999, "length": 128}),
    ],
)
def test_changes_come_back(name: str, changes: dict[str, Any]) -> None:
    recipe = Recipe.of(name, **changes)
    told = recipe.to_dict()
    assert Recipe.from_dict(json.loads(json.dumps(told))) == recipe != Recipe.of(name)
    assert told.keys() - {"method"} <= knobs().keys()


def test_what_changes_with_something_else() -> None:
    assert Recipe.of("magnitude", allocation="adapt").method.layer_importance == "cosine"
    assert Recipe.of("flap").method.allocation == GlobalConfig(standardise=True)
    assert Recipe.of("flap", allocation="global", importance="fisher").method.allocation != GlobalConfig()
    assert Recipe.of("magnitude", allocation="global").method.allocation == GlobalConfig()
    much = Recipe.of("magnitude", refit=True).calibration
    assert (much.sequences, much.length, much.batch_size) == (EFFORTS["standard"].sequences, 512, 8)
    assert Recipe.of("magnitude").calibration.sequences == Recipe.of("prunekit", sequences=32).calibration.sequences
    assert Recipe.of("prunekit", refit=False).rescale is None
    assert Recipe.of("prunekit", seed=3).calibration.seed == 3
    # None leaves a knob as the method has it.
    assert Recipe.of("adapt-pruner", steps=None) == Recipe.of("adapt-pruner")
    assert Recipe.of("adapt-pruner", calib="x").method.label == "adapt-pruner"
    assert Recipe.of("adapt-pruner", steps=3).method.label == "custom (from adapt-pruner)"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("adapt-prune", {}, "did you mean 'adapt-pruner'"),
        ("adapt-pruner", {"step": 3}, "no setting 'step'.*did you mean 'steps'"),
        ("adapt-pruner", {"steps": "3"}, "steps takes a whole number, got '3'"),
        ("adapt-pruner", {"steps": True}, "steps takes a whole number"),
        ("adapt-pruner", {"steps": 0}, "between 1 and 10000"),
        ("magnitude", {"steps": 3}, "steps has no effect on magnitude with the allocation uniform"),
        ("prunekit", {"importance": "taylor"}, "importance has no effect"),
        ("prunekit", {"effort": "quik"}, "no effort 'quik'.*did you mean 'quick'"),
        ("flap", {"effort": "quick"}, "effort has no effect on flap"),
        ("prunekit", {"curve_tokens": 0}, "curve_tokens must be a whole number of at least 1"),
        ("shortgpt", {"units": ("ffn",)}, "units has no effect"),
        ("slicegpt", {"units": ("ffn",)}, "removes no units"),
        ("slicegpt", {"refit": True}, "leave refit out"),
        ("magnitude", {"allocation": "rotate"}, "no allocation 'rotate'"),
        ("magnitude", {"allocation": "optima"}, "did you mean 'optimal'"),
        ("magnitude", {"ridge": 0.1}, "ridge says how to refit, but nothing is refitted; set refit=true too"),
        ("prunekit", {"rescale": False, "rescale_rate": 0.1}, "nothing is rescaled; set rescale=true too"),
        ("magnitude", {"rescale": True}, "set refit=true too"),
        ("magnitude", {"units": "ffn-layer"}, "measured loss curves"),
        ("magnitude", {"units": ["heads"]}, "units takes ffn"),
        ("magnitude", {"protect_layers": [[1]]}, "layer numbers"),
        ("magnitude", {"protect_layers": "x"}, "layer numbers"),
        ("magnitude", {"round_for": "phone"}, "rounding preset 'phone'"),
        ("magnitude", {"seed": -1}, "at least 0"),
    ],
)
def test_refusals(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PrunekitError, match=said):
        Recipe.of(name, **changes)


@pytest.mark.parametrize("data", [None, [], "adapt-pruner", {"method": 3}, {"method": "x"}, {"steps": [1]}])
def test_what_is_no_recipe(data: Any) -> None:
    with pytest.raises(PrunekitError):
        Recipe.from_dict(data)


def test_plans_of_earlier_versions_tell_a_recipe() -> None:
    plan = Plan.load(WRITTEN / "plan.json")
    recipe = plan.read_recipe()
    assert plan.recipe is None and recipe is not None
    assert (recipe.refit, recipe.rescale, recipe.seed) == (RefitConfig(0.5, 0.1), RescaleConfig(), 0)
    text = recipe.calibration
    assert (text.source, text.sequences, text.length, text.batch_size) == ("text.txt", 8, 32, 8)
    bare = Plan.load(WRITTEN / "per-layer" / "plan.json").read_recipe()
    assert bare is not None and bare.method.name == "fisher-global" and not bare.computes
    assert Plan.load(WRITTEN / "sublayers" / "plan.json").read_recipe().method.units == (  # type: ignore[union-attr]
        "ffn",
        "attention-layer",
        "ffn-layer",
    )


def test_a_plan_of_a_method_that_is_gone_still_loads() -> None:
    data = json.loads((WRITTEN / "per-layer" / "plan.json").read_text())
    data["provenance"]["method"] = {"name": "custom (from gone)", "allocation": "search", "units": ["kv-merge"]}
    recipe = Plan.from_dict(data).read_recipe()
    assert recipe is not None and not recipe.computes


def test_a_plan_that_does_not_name_a_knob_was_made_without_it(tmp_path: Path) -> None:
    """Its loss curves were drawn once."""
    data = json.loads((WRITTEN / "plan.json").read_text())
    recipe = Recipe.of(effort="standard").to_dict()
    assert recipe["redraw_after"] < 1
    for named in ({}, {"redraw_after": 0.3}):
        told = {**{name: value for name, value in recipe.items() if name != "redraw_after"}, **named}
        wanted = named.get("redraw_after", 1.0)
        assert Plan.from_dict({**data, "recipe": told}).recipe.to_dict()["redraw_after"] == wanted  # type: ignore[union-attr]
        (tmp_path / "plan.json").write_text(json.dumps({"format": "prunekit-plan", "recipe": told}))
        assert read_recipe(tmp_path / "plan.json")["redraw_after"] == wanted
    # A recipe that somebody wrote says what differs from the defaults.
    assert Recipe.from_dict({"effort": "standard"}).to_dict() == recipe


def test_a_plan_with_a_damaged_recipe_is_refused() -> None:
    data = json.loads((WRITTEN / "plan.json").read_text())
    for wrong in ({"method": "prunekit", "stepps": 3}, [], {"units": 3}):
        with pytest.raises(PrunekitError):
            Plan.from_dict({**data, "recipe": wrong})


def test_recipes_need_no_torch() -> None:
    code = "import sys; from prunekit.plan.recipe import Recipe; Recipe.of(); assert 'torch' not in sys.modules"
    # As the command, which doesn't register the classes of pruned models.
    subprocess.run([sys.executable, "-c", f"import sys; sys.argv = ['prunekit']; {code}"], check=True)


def test_defaults_are_the_papers() -> None:
    assert METHODS["adapt-pruner"].allocation == AdaptConfig(steps=50, amplitude=0.02, attention_ratio=1.0)


def test_the_default_is_standard_effort() -> None:
    assert METHODS["prunekit"] == METHODS["prunekit"].at("standard") and Recipe.of(effort="standard") == Recipe.of()
    assert {name for name, each in METHODS.items() if each.effort is not None} == {"prunekit"}


@pytest.mark.parametrize("name", EFFORTS)
def test_effort_is_a_dial(name: str) -> None:
    recipe = Recipe.of(effort=name)
    told = recipe.to_dict()
    assert told["effort"] == recipe.method.describe()["effort"] == name
    assert told | asdict(EFFORTS[name]) == told, "and each setting is told by itself"
    assert recipe.method.label == "prunekit"
    assert Recipe.from_dict(json.loads(json.dumps(told))) == recipe
    # Settings come on top, whatever the order.
    turned = Recipe.of(sequences=9, scale_tokens=7, effort=name)
    assert (turned.calibration.sequences, turned.method.allocation.scale_tokens) == (9, 7)  # type: ignore[attr-defined]
    assert turned.method.allocation.curve_tokens == EFFORTS[name].curve_tokens  # type: ignore[attr-defined]
    assert Recipe.of(effort=name, allocation="uniform").calibration.sequences == EFFORTS[name].sequences


def test_more_effort_is_never_less() -> None:
    for less, more in pairwise(EFFORTS.values()):
        for each in ("sequences", "length", "curve_tokens", "fisher_tokens", "scale_tokens"):
            assert getattr(less, each) <= getattr(more, each)


def test_another_effort_on_top_of_a_recipe() -> None:
    base = Recipe.of(effort="best", ridge=0.2).to_dict()
    assert Recipe.from_dict(put_on_top(base, {"effort": "quick"})) == Recipe.of(effort="quick", ridge=0.2)
    rescaled = {"effort": "quick", "rescale": True}
    assert Recipe.from_dict(put_on_top(base, rescaled)) == Recipe.of(ridge=0.2, **rescaled)
    assert put_on_top(base, {"effort": "best", "ridge": 0.3}) == {**base, "ridge": 0.3}
    named = Recipe.of(calib="a.txt", sequences=300).to_dict()
    assert Recipe.from_dict(put_on_top(named, {"effort": "quick"})) == Recipe.of(effort="quick", calib="a.txt")
