"""``prunekit prune``: decide widths, or take those of a plan, then cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.asked import read_asked, read_settings
from prunekit.cli.common import app, console, print_json
from prunekit.cli.launch import on_all_ranks
from prunekit.cli.tables.plan import plan_summary, plan_tables
from prunekit.errors import PrunekitError

# What still has a meaning where a finished plan is applied.
_WITH_PLAN = {"model", "output", "plan", "layout", "store_dtype", "max_shard", "overwrite", "revision", "json"}
# What says on which text and how, where projections or biases are still to be computed.
_COMPUTING = {"calib", "settings", "dtype", "device"}


@app.command()
@on_all_ranks
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
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint whose layers have their own widths."""
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

    made_by, file, batch_size = None, None, None
    if plan is None:
        asked = {"effort": effort, "calib": calib, "round_for": round_for}
        made_by = read_asked(goals, method, recipe, settings, asked)
    else:
        file, goals = Plan.load(plan), {}
        _refuse_beside_plan(command, _WITH_PLAN | (_COMPUTING if pipeline.computes(file) else set()))
        batch_size = _batch_size(settings)
    pruned = pipeline.prune(
        model,
        output,
        plan=file,
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
        **goals,
    )
    made, written = pruned.plan, pruned.written
    stored = (pick_dtype(store_dtype) or pruned.source.dtype).itemsize
    if json:
        summary = plan_summary(made, stored)
        print_json({"checkpoint": str(output), "layout": layout, "architecture": written.architecture, **summary})
        return
    console().print(plan_tables(made, stored))
    console().print(f"Checkpoint written to {output} ({written.architecture}, {written.weight_bytes:,} weight bytes).")


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
