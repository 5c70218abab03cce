"""``prunekit prune``: decide widths, or take those of a plan, then cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.asked import read_asked, read_settings, split_settings
from prunekit.cli.checking import check_asked, checked, then_checked
from prunekit.cli.common import app, console, note, print_json
from prunekit.cli.launch import on_all_ranks
from prunekit.cli.long_command import TELLING, long
from prunekit.cli.tables.plan import plan_summary, plan_tables
from prunekit.cli.tables.recovery import curve_table, stage_table
from prunekit.cli.telling import say, training_listener
from prunekit.errors import PrunekitError
from prunekit.plan.training import LOOPS, recovery_knobs

# What still has a meaning where a finished plan is applied.
_FILES = {"model", "output", "plan", "layout", "store_dtype", "max_shard", "overwrite", "revision", "json", *TELLING}
_WITH_PLAN = _FILES | {"check", "max_loss_added"}
# What says on which text and how, where projections or biases are still to be computed.
_COMPUTING = {"calib", "settings", "dtype", "device"}
# What says how what is left is trained.
_TRAINING = {"tokens", "minutes", "stages", "text", "checkpoint_minutes", "tensorboard"}
_TRAINED = {"recover", "settings", "dtype", "device"} | _TRAINING


@app.command()
@on_all_ranks
@long
def prune(
    command: typer.Context,
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.")],
    plan: Annotated[Path | None, typer.Option(help="Apply this plan, instead of making one.")] = None,
    layout: Annotated[
        str,
        typer.Option(help=f"{o.LAYOUT}: per-layer, or uniform, padded with zeros to a stock architecture, no gain."),
    ] = "per-layer",
    store_dtype: Annotated[str, typer.Option(help="Store weights in auto, float32, bfloat16 or float16.")] = "auto",
    max_shard: Annotated[
        str, typer.Option(help="Largest size of one weight file; it is what memory must hold.")
    ] = "2GiB",
    overwrite: o.Overwrite = False,
    params: o.Params = None,
    blocks: o.Blocks = None,
    weights: o.Weights = None,
    flops: o.Flops = None,
    context: o.Context = None,
    kv_cache: o.KvCache = None,
    latency: o.Latency = None,
    latency_table: o.LatencyTable = None,
    method: o.MethodName = None,
    effort: o.Effort = None,
    calib: o.Calib = None,
    round_for: o.RoundFor = None,
    settings: o.Settings = None,
    recipe: o.RecipeFile = None,
    recover: o.Recover = False,
    tokens: o.Tokens = None,
    minutes: o.Minutes = None,
    stages: o.Stages = None,
    text: o.TrainingText = None,
    checkpoint_minutes: o.CheckpointMinutes = None,
    tensorboard: o.Tensorboard = None,
    check: o.Check = "builtin",
    max_loss_added: o.MaxLossAdded = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint whose layers have their own widths.

    With --recover, what is left is trained toward the dense model, in turns with pruning (Adapt-Accel). In the end
    prunekit looks at the result beside the dense model for about a minute, and says whether it is broken.
    """
    goals: dict[str, Any] = {
        "params": params,
        "blocks": blocks,
        "weights": weights,
        "flops": flops,
        "context": context,
        "kv_cache": kv_cache,
        "latency": latency,
        "latency_table": latency_table,
    }
    from prunekit import pipeline
    from prunekit.models.source import pick_dtype
    from prunekit.plan import Plan

    check_asked(check, max_loss_added)
    made_by, file, batch_size = None, None, None
    settings, training = split_settings(settings, recovery_knobs())
    if not recover:
        _refuse_training(command, training)
    loop = method if recover and method in LOOPS else None
    if plan is None:
        asked = {"effort": effort, "calib": calib, "round_for": round_for}
        made_by = read_asked(goals, LOOPS[loop].method if loop else method, recipe, settings, asked)
    else:
        file, goals = Plan.load(plan), {}
        allowed = _WITH_PLAN | (_COMPUTING if pipeline.computes(file) else set()) | (_TRAINED if recover else set())
        _refuse_beside_plan(command, allowed)
        batch_size = _batch_size(settings)
    trained = None
    if recover:
        told: dict[str, Any] = {"settings": training, "listener": training_listener(json), "tensorboard": tensorboard}
        if checkpoint_minutes is not None:
            told["checkpoint_minutes"] = checkpoint_minutes
        trained = pipeline.Recovery(tokens=tokens, minutes=minutes, text=text, stages=stages, **told)
    with then_checked(check):
        pruned = pipeline.prune(
            model,
            output,
            plan=file,
            **({"method": loop} if loop else {}),
            recipe=made_by,
            calib=calib,
            batch_size=batch_size,
            layout=layout,
            store_dtype=store_dtype,
            max_shard=max_shard,
            overwrite=overwrite,
            revision=revision,
            dtype=dtype,
            device=device,
            recover=trained,
            **goals,
        )
        made, written, recovered = pruned.plan, pruned.written, pruned.recovered
        stored = (pick_dtype(store_dtype) or pruned.source.dtype).itemsize
        if not json:
            console().print(plan_tables(made, stored))
            if recovered is not None:
                console().print(stage_table(recovered) if len(recovered.stages) > 1 else curve_table(recovered))
                if not recovered.stages[-1]["used_step"]:
                    note("No step of the last training had a lower loss on held-out text than what it began with.")
            size = f"{written.weight_bytes:,} weight bytes"
            console().print(f"Checkpoint written to {output} ({written.architecture}, {size}).")
        seen, code = checked(output, pruned.source, check, max_loss_added, show=not json, dtype=dtype, device=device)
    if json:
        summary = plan_summary(made, stored)
        said = {"checkpoint": str(output), "layout": layout, "architecture": written.architecture, **summary}
        said |= {} if seen is None else {"check": seen}
        if recovered is None:
            print_json(said)
        else:
            say({**said, "recovery": list(recovered.stages)})
    if code:
        raise typer.Exit(code)


def _refuse_training(command: typer.Context, settings: dict[str, Any]) -> None:
    """Nothing is trained: what says how would be ignored."""
    for parameter in command.command.params:
        if parameter.name in _TRAINING and command.params.get(parameter.name) is not None:
            raise _untrained(max(parameter.opts, key=len))
    for name in settings:
        raise _untrained(f"--set {name}")


def _untrained(what: str) -> PrunekitError:
    return PrunekitError(f"{what} says how what is left is trained; add --recover, or leave it out.")


def _refuse_beside_plan(command: typer.Context, allowed: set[str]) -> None:
    """A plan has decided everything that these options decide: silently ignoring one would mislead."""
    for parameter in command.command.params:
        source = command.get_parameter_source(parameter.name or "")
        # By its name: typer's own copy of click has another enum of the same members.
        if parameter.name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise _no_effect(max(parameter.opts, key=len))


def _batch_size(settings: list[str] | None) -> int | None:
    """The one setting that a plan leaves open."""
    told = read_settings(settings)
    for name in told:
        if name != "batch_size":
            raise _no_effect(f"--set {name}")
    return told.get("batch_size")


def _no_effect(what: str) -> PrunekitError:
    return PrunekitError(
        f"A plan already has its target, method and widths, so {what} would have no effect; leave it out, or leave out "
        "--plan."
    )
