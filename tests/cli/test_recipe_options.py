"""Settings by --set and --recipe, and `prunekit methods`, which lists them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prunekit.plan import Plan
from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import Recipe, knobs
from prunekit.plan.settings import EFFORTS
from tests.support.command import BRIEF, DEFAULT, Command, save_tiny, write_text
from tests.support.tiny import one_thread

SMALL = ("--set", "sequences=4", "--set", "length=16", "--set", "ffn-multiple=1", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def _plan(command: Command, model: Path, out: Path, *arguments: object) -> Plan:
    done = command("plan", model, "--blocks", "70%", "-o", out, "--overwrite", DEFAULT, *arguments)
    assert done.code == 0, done
    return Plan.load(out)


def test_settings_turn_every_knob(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    named = ("--method", "adapt-pruner", "--calib", text, *SMALL)
    told = ("steps=4", "amplitude=0.1", "importance = fisher", "units=ffn,query", "gradient-checkpointing=true")
    settings = [part for each in told for part in ("--set", each)]
    by_setting = _plan(command, model, tmp_path / "plan.json", *named, "--set", "steps=9", *settings)
    assert by_setting.recipe is not None and by_setting.recipe.method.units == ("ffn", "query")
    # Of one setting the last word counts, as of an option.
    knobs_told = {"steps": 4, "amplitude": 0.1, "importance": "fisher", "units": "ffn,query"}
    small = {"calib": "text.txt", "sequences": 4, "length": 16, "ffn_multiple": 1, "gradient_checkpointing": True}
    assert by_setting.recipe == Recipe.of("adapt-pruner", **knobs_told, **small)
    # A plan is a recipe, of another model too; what is said beside it counts.
    again = _plan(command, model, tmp_path / "again.json", "--recipe", tmp_path / "plan.json", "--calib", text)
    assert again.layers == by_setting.layers and again.recipe == by_setting.recipe
    told = ("--recipe", tmp_path / "plan.json", "--calib", text, "--set", "allocation=uniform", "--set", "seed=3")
    other = _plan(command, model, tmp_path / "other.json", *told).recipe
    assert other is not None and (other.method.allocation.name, other.seed) == ("uniform", 3)
    (tmp_path / "recipe.json").write_text(json.dumps({"method": "adapt-pruner", "steps": 4}))
    file = ("--recipe", tmp_path / "recipe.json", "--calib", text, *SMALL)
    shared = _plan(command, model, tmp_path / "shared.json", *file).recipe
    assert shared == Recipe.of("adapt-pruner", steps=4, calib="text.txt", sequences=4, length=16, ffn_multiple=1)


def test_effort_is_recorded_and_settings_come_on_top(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    told = ("--effort", "quick", "--calib", text, *SMALL)
    recipe = _plan(command, model, tmp_path / "plan.json", *told).recipe
    small = {"calib": "text.txt", "sequences": 4, "length": 16, "ffn_multiple": 1}
    assert recipe == Recipe.of(effort="quick", **small)
    # From the plan, which has all settings: those of the other effort take their place.
    again = ("--recipe", tmp_path / "plan.json", "--effort", "best", "--calib", text, *SMALL)
    other = _plan(command, model, tmp_path / "other.json", *again).recipe
    assert other == Recipe.of(effort="best", **small)


def test_a_recipe_without_its_refit(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    named = (
        "--method",
        "magnitude",
        "--set",
        "refit=true",
        "--set",
        "rescale=true",
        "--set",
        "ridge=0.2",
        "--calib",
        text,
        *SMALL,
    )
    _plan(command, model, tmp_path / "plan.json", *named)
    told = ("--recipe", tmp_path / "plan.json", "--set", "refit=false", "--calib", text)
    recipe = _plan(command, model, tmp_path / "other.json", *told).recipe
    assert recipe is not None and recipe.refit is None and recipe.rescale is None


def test_an_option_without_effect_is_told(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    idle = ("--round-for", "gpu", "--effort", "quick", "--set", "steps=4", "--set", "units=ffn")
    told = ("--method", "shortgpt", *idle, "--calib", text, *BRIEF)
    done = command("plan", model, "--blocks", "0.7", "-o", tmp_path / "plan.json", *told)
    assert done.code == 0, done
    for name in ("round_for", "effort", "steps", "units"):
        assert f"prunekit: {name} has no effect on shortgpt and is left out." in done.err
    recipe = Plan.load(tmp_path / "plan.json").recipe
    assert recipe is not None and recipe.rounding.round_for is None


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--steps", "steps=VALUE"),
        ("--no-refit", "refit=false"),
        ("--rescale", "rescale=true"),
        ("--allocate", "allocation=VALUE"),
        ("--prune", "units=VALUE"),
        ("--batch-size", "batch_size=VALUE"),
    ],
)
def test_who_takes_a_setting_for_an_option_is_told(
    option: str, setting: str, command: Command, model: Path, tmp_path: Path
) -> None:
    for name in ("plan", "prune"):
        done = command(name, model, DEFAULT, "--blocks", "0.7", "-o", tmp_path / "out", option, "4")
        assert done.code == 2 and f"{option} is no option but a setting: say --set {setting}." in done.err, done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "step=3"), "There is no setting 'step' (did you mean 'steps'?)"),
        (("--set", "steps"), "such as steps=20"),
        (("--set", "=3"), "such as steps=20"),
        (("--set", "steps=many"), "steps takes a whole number, got 'many'"),
        (("--set", "amplitude=much"), "amplitude takes a number"),
        (("--set", "refit=perhaps"), "refit takes true or false"),
        (("--round-for", "gpu", "--set", "round_for=gguf"), "round_for is said twice"),
        (("--effort", "quik"), "did you mean 'quick'"),
        (("--effort", "best", "--set", "effort=quick"), "effort is said twice"),
        (("--recipe", "RECIPE", "--method", "flap"), "is one of adapt-pruner"),
        (("--recipe", "nowhere.json"), "does not exist"),
        (("--recipe", "OLD"), "a plan of an earlier version"),
        (("--recipe", "WRONG"), "There is no setting 'stepps' (did you mean 'steps'?)"),
    ],
)
def test_bad_settings(arguments: tuple[str, ...], said: str, command: Command, model: Path, tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "golden" / "written" / "plan.json"
    files = {"RECIPE": tmp_path / "recipe.json", "OLD": old, "WRONG": tmp_path / "wrong.json"}
    files["RECIPE"].write_text(json.dumps(Recipe.of("adapt-pruner").to_dict()))
    files["WRONG"].write_text(json.dumps({"stepps": 3}))
    told = [files.get(each, each) for each in arguments]
    named = () if {"--method", "--recipe", "--effort"} & {*arguments} else ("--method", "adapt-pruner")
    for name in ("plan", "prune"):
        done = command(name, model, DEFAULT, "--blocks", "0.7", "-o", tmp_path / "out", *named, *told)
        assert done.code == 2 and said in " ".join(done.err.split()) and "Traceback" not in done.err, done
    assert not (tmp_path / "out").exists()


def test_methods_and_settings_are_listed(command: Command) -> None:
    done = command("methods", "--json")
    assert done.code == 0, done
    data: dict[str, Any] = done.json
    assert [each["name"] for each in data["methods"]] == [*METHODS]
    assert all(Recipe.from_dict(each["recipe"]) == Recipe.of(each["name"]) for each in data["methods"])
    listed = {each["name"]: each for each in data["settings"]}
    assert [*listed] == [*knobs()] and all(each["help"] for each in listed.values())
    assert listed["allocation"]["choices"] == ["uniform", "adapt", "global", "optimal", "drop"]
    assert listed["effort"]["choices"] == ["quick", "standard", "best"]
    assert "taylor" in listed["importance"]["choices"] and listed["steps"]["default"] == 50
    assert {each["name"]: each["settings"] for each in data["efforts"]} == {
        name: asdict(each) for name, each in EFFORTS.items()
    }
    shown = command("methods").out
    assert all(name in shown for name in (*METHODS, *knobs()))
