"""``prunekit methods``: what there is to choose from, and every setting."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.plan.allocations import ALLOCATIONS, MEASURED, SCORED
from prunekit.plan.knobs import words
from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import Recipe, knobs
from prunekit.plan.settings import EFFORTS


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
        "settings": [
            {
                "name": each.name,
                "takes": words(each.type),
                **({"choices": list(choices[each.name])} if each.name in choices else {}),
                "default": list(each.default) if isinstance(each.default, tuple) else each.default,
                "help": each.help,
            }
            for each in knobs().values()
        ],
        "efforts": [{"name": name, "settings": asdict(each)} for name, each in EFFORTS.items()],
    }
    if json:
        print_json(data)
        return
    shown = table("Methods (--method)", "name", "what it does")
    efforts = table("Efforts (--effort, of the default method)", "name", "what it sets")
    settings = table("Settings (--set key=value, or a JSON file for --recipe)", "key", "takes", "what it is")
    for column in (*shown.columns[1:], *efforts.columns[1:], *settings.columns[1:]):
        column.justify = "left"
    for each in data["methods"]:
        shown.add_row(each["name"], each["summary"])
    for each in data["efforts"]:
        efforts.add_row(each["name"], ", ".join(f"{name}={value}" for name, value in each["settings"].items()))
    for each in data["settings"]:
        settings.add_row(each["name"], ", ".join(each.get("choices", ())) or each["takes"], each["help"])
    console().print(shown)
    console().print(efforts)
    console().print(settings)
