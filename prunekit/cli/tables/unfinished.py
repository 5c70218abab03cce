"""A training that is not finished, for ``prunekit inspect``: what it is, how far it came, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit.cli.common import console, table
from prunekit.errors import PrunekitError
from prunekit.plan.recipe import Recipe
from prunekit.plan.training import LOOPS, StagesConfig, TextConfig, TrainingConfig, recovery_knobs, training_knobs

if TYPE_CHECKING:
    from prunekit.recovery.training.run_folder import RunFolder


# What prune and recover write where nothing else is said.
_USUAL = {"store_dtype": "auto", "layout": "per-layer", "max_shard": "2GiB"}


def unfinished_data(folder: RunFolder) -> dict[str, Any]:
    """All that is known of it, as JSON values. Raises PrunekitError where a file of it is damaged."""
    from prunekit.checkpoint.manifest import verify
    from prunekit.recovery.training.state import read_standing

    try:
        command = _command(folder)
        ended = _ended(folder)
        kept = folder.trained(len(ended) + 1) if "targets" in folder.settled else folder
        stages = {"stage": {"number": len(ended) + 1, "of": len(folder.settled["targets"])}} if kept != folder else {}
        steps, tokens = (sum(int(each["standing"][name]) for each in ended) for name in ("step", "tokens"))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise PrunekitError(
            f"{folder.path / 'run.json'} is damaged, so the training can't go on; delete the folder to begin anew."
        ) from None
    checkpoints = []
    for step in kept.checkpoints():
        report = verify(kept.checkpoint(step))
        if report.damaged:
            raise PrunekitError(
                f"{kept.checkpoint(step)} is damaged: {', '.join(report.damaged)} changed since it was written. "
                "Delete that folder to go on from an earlier checkpoint, or from the start."
            )
        checkpoints.append({"step": steps + step, "verified_files": report.files})
    standing = read_standing(kept.checkpoint(kept.checkpoints()[-1])) if checkpoints else None
    return {
        "training": str(folder.path),
        "model": folder.settled.get("model_name"),
        "teacher": folder.settled.get("teacher_name"),
        "asked": folder.asked,
        "steps": folder.settled.get("steps"),
        **stages,
        "step": steps + (standing.step if standing else 0),
        "tokens": tokens + (standing.tokens if standing else 0),
        "held_out": standing.held_out if standing else [],
        "best": standing.best if standing and standing.held_out else None,
        "checkpoints": checkpoints,
        "command": command,
    }


def _ended(folder: RunFolder) -> list[dict[str, Any]]:
    """What is known of the stages that have ended, where there are stages."""
    numbers = range(1, len(folder.settled.get("targets", ())) + 1)
    return [facts for facts in map(folder.facts, numbers) if facts is not None]


def show_unfinished(data: dict[str, Any]) -> None:
    """Print it."""
    shown = table(f"{data['training']}: a training that is not finished", "", "")
    shown.columns[1].justify = "left"
    steps = f" of {data['steps']:,}" if isinstance(data["steps"], int) else ""
    stage = f"stage {data['stage']['number']} of {data['stage']['of']}, " if "stage" in data else ""
    held = data["held_out"]
    best = data["best"]
    for name, value in (
        ("training of", f"{data['model'] or 'a pruned model'} toward {data['teacher'] or 'its dense model'}"),
        ("text", str(data["asked"]["text"]["source"])),
        ("how far", f"{stage}step {data['step']:,}{steps}, {data['tokens']:,} tokens"),
        (
            "KL on held-out text",
            f"{held[0]['kl']:.4f} before, {best['kl']:.4f} at step {best['step']}, the best so far" if best else None,
        ),
        ("checkpoints", _checkpoints(data["checkpoints"])),
    ):
        if value:
            shown.add_row(name, value)
    out = console()
    out.print(shown)
    out.print("Unless it runs at this moment, this goes on from there, with models and text named where they lie:")
    out.print(data["command"], soft_wrap=True)
    out.print("If you don't need it any more, delete the folder.")


def _checkpoints(known: list[dict[str, Any]]) -> str:
    if not known:
        return "none yet: it will begin with the first step"
    return ", ".join(f"step {each['step']:,} ({each['verified_files']} files as written)" for each in known)


def _command(folder: RunFolder) -> str:
    """The command that goes on. Models and text are named without their folders: none of these is written down."""
    from prunekit.recovery.training.run import SUFFIX

    asked, model = folder.asked, folder.settled.get("model_name") or "MODEL"
    out = str(folder.path.with_name(folder.path.name.removesuffix(SUFFIX)))
    turns = "turns" in asked
    loop = asked["loop"] if turns else None
    config, stages = (LOOPS[loop].training, LOOPS[loop].stages) if loop else (TrainingConfig(), StagesConfig())
    if turns:
        words: list[Any] = ["prunekit", "prune", model, "-o", out, *_plan_words(asked, loop), "--recover"]
        words += [] if asked["stages"] is None else ["--stages", asked["stages"]]
    else:
        words = ["prunekit", "recover", model, "-o", out, "--teacher", folder.settled.get("teacher_name") or "TEACHER"]
    words += ["--text", asked["text"]["source"]]
    for name, value in asked["budget"].items():
        words += [] if value is None else [f"--{name}", value]
    words += [] if asked["dtype"] == "auto" else ["--dtype", asked["dtype"]]
    words += _written_words(folder)
    words += ["--seed", asked["text"]["seed"]] if asked["text"]["seed"] and not turns else []
    settings = {**config.resources, **asked["settings"], **folder.settled.get("resources", {})}
    for knob in (recovery_knobs() if turns else training_knobs()).values():
        told, usual = {
            TrainingConfig: (settings, config),
            TextConfig: (asked["text"], TextConfig()),
            StagesConfig: (asked.get("turns", {}), stages),
        }[knob.config]
        if told[knob.field] != getattr(usual, knob.field):
            words += _set(knob.name, told[knob.field])
    return shlex.join(map(str, words))


def _written_words(folder: RunFolder) -> list[Any]:
    """How the result is written, and how often a checkpoint is."""
    from prunekit.recovery.training.run import in_option

    words: list[Any] = []
    for name, value in folder.settled.get("form", {}).items():
        if in_option(value) != _USUAL[name]:
            words += [f"--{name.replace('_', '-')}", in_option(value)]
    minutes = folder.settled.get("checkpoint_minutes", 10.0)
    return words if minutes == 10 else [*words, "--checkpoint-minutes", f"{minutes:g}"]


def _plan_words(asked: Mapping[str, Any], loop: str | None) -> list[Any]:
    """What `prunekit prune` was told of the plan."""
    if "plan" in asked:
        return ["--plan", "PLAN"]
    words: list[Any] = shlex.split(asked["goals"])
    words += ["--context", asked["context"]] if asked["context"] else []
    words += ["--latency-table", "TABLE"] if asked["latency table"] else []
    recipe = asked["recipe"]
    words += ["--method", loop or recipe["method"]]
    usual = Recipe.of(recipe["method"]).to_dict()
    calib = recipe["calib"]["source"]
    words += [] if calib == usual["calib"] else ["--calib", calib]
    for name, value in recipe.items():
        if name not in ("method", "calib") and value != usual.get(name):
            words += _set(name, value)
    return words


def _set(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        value = str(value).lower()
    return ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]
