"""What plan, prune and analyze are asked for: goals, and the recipe that --method, --recipe, --set and options make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.cli.common import note
from prunekit.errors import PrunekitError
from prunekit.plan.knobs import Knob, knobs_of, parse_value, split_setting
from prunekit.plan.recipe import DEFAULT, Recipe, parse_setting, put_on_top, read_recipe, without_effect
from prunekit.plan.settings import CalibrationConfig


def read_asked(
    goals: Mapping[str, Any],
    method: str | None,
    file: Path | None,
    settings: list[str] | None,
    options: Mapping[str, Any],
) -> Recipe:
    """The recipe asked for, checked together with the ``goals`` before a model is looked for."""
    from prunekit.pipeline import read_goals

    target = read_goals(goals)
    recipe = recipe_of(method, file, settings, options)
    target.check_method(recipe.method)
    return recipe


def recipe_of(method: str | None, file: Path | None, settings: list[str] | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe in ``file``, or the method's, with the ``options`` that were given and each of --set on top.

    What has no effect is told and left out: scripts give several methods the same settings. Raises PrunekitError where
    something is said twice or unknown.
    """
    told = {name: value for name, value in options.items() if value is not None}
    for name, value in read_settings(settings).items():
        if name in told:
            raise PrunekitError(f"{name} is said twice, by an option and by --set {name}=...; leave one out.")
        told[name] = value
    base = read_recipe(file) if file else {}
    named = str(base.pop("method", DEFAULT))
    if file and method is not None and method != named:
        raise PrunekitError(f"The recipe {file} is one of {named}, so leave out --method {method}, or --recipe.")
    for name in without_effect(method or named, put_on_top(base, told)):
        if name in told:
            note(f"{name} has no effect on {method or named} and is left out.")
            del told[name]
    return Recipe.of(method or named, **put_on_top(base, told))


def split_settings(settings: list[str] | None, known: Mapping[str, Knob]) -> tuple[list[str], dict[str, Any]]:
    """What --set says of other things, and of the ``known`` settings of a training, by name; of one setting the last
    word counts. Raises PrunekitError where one of these has another type."""
    others: list[str] = []
    training: dict[str, Any] = {}
    for text in settings or ():
        name, value = split_setting(text)
        if name in known:
            training[name] = parse_value(known[name], value)
        else:
            others.append(text)
    return others, training


def text_asked(calib: str | None, settings: list[str] | None) -> CalibrationConfig:
    """The text that --calib and --set ask for, where scores are all that is wanted. Raises PrunekitError where a
    setting says something else."""
    told = read_settings(settings)
    of_text = {"seed", *(each.name for each in knobs_of(CalibrationConfig))}
    for name in told:
        if name not in of_text:
            raise PrunekitError(f"{name} has no effect here, where nothing is pruned; leave --set {name} out.")
    return recipe_of("adapt-pruner", None, settings, {"calib": calib}).calibration


def read_settings(settings: list[str] | None) -> dict[str, Any]:
    """What --set says; of one setting the last word counts, as of an option. Raises PrunekitError for unknown ones."""
    return dict(parse_setting(text) for text in settings or ())
