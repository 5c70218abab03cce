"""A training that is not finished, for ``prunekit inspect``: what it is, how far it came, and how to go on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from prunekit.cli.common import console, table
from prunekit.errors import PrunekitError
from prunekit.plan.training import TrainingConfig, training_knobs

if TYPE_CHECKING:
    from prunekit.recovery.training.run_folder import RunFolder


def unfinished_data(folder: RunFolder) -> dict[str, Any]:
    """All that is known of it, as JSON values. Raises PrunekitError where a file of it is damaged."""
    from prunekit.checkpoint.manifest import verify
    from prunekit.recovery.training.state import read_standing

    try:
        command = _command(folder)
    except (KeyError, TypeError, AttributeError):
        raise PrunekitError(
            f"{folder.path / 'run.json'} is damaged, so the training can't go on; delete the folder to begin anew."
        ) from None
    checkpoints = []
    for step in folder.checkpoints():
        report = verify(folder.checkpoint(step))
        if report.damaged:
            raise PrunekitError(
                f"{folder.checkpoint(step)} is damaged: {', '.join(report.damaged)} changed since it was written. "
                "Delete that folder to go on from an earlier checkpoint, or from the start."
            )
        checkpoints.append({"step": step, "verified_files": report.files})
    standing = read_standing(folder.checkpoint(checkpoints[-1]["step"])) if checkpoints else None
    return {
        "training": str(folder.path),
        "model": folder.settled.get("model_name"),
        "teacher": folder.settled.get("teacher_name"),
        "asked": folder.asked,
        "steps": folder.settled.get("steps"),
        "step": standing.step if standing else 0,
        "tokens": standing.tokens if standing else 0,
        "held_out": standing.held_out if standing else [],
        "checkpoints": checkpoints,
        "command": command,
    }


def show_unfinished(data: dict[str, Any]) -> None:
    """Print it."""
    shown = table(f"{data['training']}: a training that is not finished", "", "")
    shown.columns[1].justify = "left"
    steps = f" of {data['steps']:,}" if isinstance(data["steps"], int) else ""
    held = data["held_out"]
    best = min(held, key=lambda row: row["kl"], default=None)
    for name, value in (
        ("training of", f"{data['model'] or 'a pruned model'} toward {data['teacher'] or 'its dense model'}"),
        ("text", str(data["asked"]["text"]["source"])),
        ("how far", f"step {data['step']:,}{steps}, {data['tokens']:,} tokens"),
        (
            "KL on held-out text",
            f"{held[0]['kl']:.4f} before, {best['kl']:.4f} at step {best['step']}" if best else None,
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

    asked = folder.asked
    out = folder.path.name.removesuffix(SUFFIX)
    words: list[Any] = [
        "prunekit",
        "recover",
        folder.settled.get("model_name") or "MODEL",
        "-o",
        str(folder.path.with_name(out)),
    ]
    words += ["--teacher", folder.settled.get("teacher_name") or "TEACHER", "--text", asked["text"]["source"]]
    for name, value in asked["budget"].items():
        words += [] if value is None else [f"--{name}", value]
    words += [] if asked["dtype"] == "auto" else ["--dtype", asked["dtype"]]
    words += ["--seed", asked["text"]["seed"]] if asked["text"]["seed"] else []
    for knob in training_knobs().values():
        value = asked["settings" if knob.config is TrainingConfig else "text"][knob.field]
        if value != knob.default:
            words += ["--set", f"{knob.name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(map(str, words))
