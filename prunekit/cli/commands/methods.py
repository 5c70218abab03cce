"""``prunekit methods``: what there is to choose from, and every setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.plan.allocations import ALLOCATIONS, MEASURED, SCORED
from prunekit.plan.knobs import Knob, words
from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import Recipe, knobs
from prunekit.plan.settings import EFFORTS
from prunekit.plan.training import LOOPS, recovery_knobs


@app.command()
def methods(json: o.Json = False) -> None:
    """List the methods, and the settings that --set and --recipe take."""
    from prunekit.pruning.importance import IMPORTANCE, LAYER_IMPORTANCE

    choices: dict[str, tuple[str, ...]] = {
        "importance": tuple(IMPORTANCE),
        "layer_importance": tuple(LAYER_IMPORTANCE),
        "allocation": tuple(name for name in ALLOCATIONS if name != "rotate"),
        "units": (*SCORED, *MEASURED),
        "effort": tuple(EFFORTS),
    }
    recipes = {name: Recipe.of(name).to_dict() for name in METHODS}
    data: dict[str, Any] = {
        "methods": [
            {"name": each.name, "summary": each.summary, "recipe": recipes[each.name]} for each in METHODS.values()
        ],
        "loops": [{"name": name, "summary": each.summary, "method": each.method} for name, each in LOOPS.items()],
        "settings": [_described(each, choices) for each in knobs().values()],
        "training": [_described(each, {}) for each in recovery_knobs().values()],
        "efforts": [{"name": name, "settings": asdict(each)} for name, each in EFFORTS.items()],
    }
    if json:
        print_json(data)
        return
    shown = table("Methods (--method)", "name", "what it does")
    efforts = table("Efforts (--effort, of the default method)", "name", "what it sets")
    settings = table("Settings (--set key=value, or a JSON file for --recipe)", "key", "takes", "what it is")
    training = table("Settings of training (--set with prune --recover, and recover)", "key", "takes", "what it is")
    for column in (each for made in (shown, efforts, settings, training) for each in made.columns[1:]):
        column.justify = "left"
    for each in (*data["methods"], *data["loops"]):
        shown.add_row(each["name"], each["summary"])
    for each in data["efforts"]:
        efforts.add_row(each["name"], ", ".join(f"{name}={value}" for name, value in each["settings"].items()))
    for made, named in ((settings, "settings"), (training, "training")):
        for each in data[named]:
            made.add_row(each["name"], ", ".join(each.get("choices", ())) or each["takes"], each["help"])
    for made in (shown, efforts, settings, training):
        console().print(made)


def _described(each: Knob, choices: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    return {
        "name": each.name,
        "takes": words(each.type),
        **({"choices": list(choices[each.name])} if each.name in choices else {}),
        "default": list(each.default) if isinstance(each.default, tuple) else each.default,
        "help": each.help,
    }
