"""``prunekit plan`` and ``prunekit prune``: decide widths, then cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import Device, Dtype, Json, Model, Overwrite, app, console, print_json
from prunekit.cli.tables.plan import plan_summary, plan_tables
from prunekit.errors import PrunekitError
from prunekit.plan.recipe import Recipe
from prunekit.report.pictures import check_different, check_picture
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local

Picture = Annotated[Path | None, typer.Option(help="Also draw the widths of every layer into this .png or .svg.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]


# Options that are knobs of the recipe under another name.
_KNOBS = {"allocate": "allocation", "prune": "units"}
_GOALS = ("params", "blocks", "weights", "flops", "kv_cache", "latency", "latency_table")
_MACHINE = ("dtype", "device", "gradient_checkpointing")


def _settings(**given: Any) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """The recipe that the options ask for, the goals, and what says how to compute; all checked before a model is
    looked for."""
    from prunekit.pipeline import read_goals

    goals = {**{name: given.pop(name) for name in _GOALS}, "context": given.pop("attended")}
    machine = {name: given.pop(name) for name in _MACHINE}
    target = read_goals(goals)
    told = (given.pop("method"), given.pop("recipe"), given.pop("settings"))
    recipe = o.recipe_of(*told, {_KNOBS.get(name, name): value for name, value in given.items()})
    target.check_method(recipe.method)
    return recipe, goals, machine


@app.command()
def plan(
    model: Model,
    params: o.Params = None,
    blocks: o.Blocks = None,
    weights: o.Weights = None,
    flops: o.Flops = None,
    attended: o.Context = None,
    kv_cache: o.KvCache = None,
    latency: o.Latency = None,
    latency_table: o.LatencyTable = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")] = Path("plan.json"),
    picture: Picture = None,
    overwrite: Overwrite = False,
    method: o.MethodName = None,
    recipe: o.RecipeFile = None,
    settings: o.Settings = None,
    importance: o.ImportanceName = None,
    layer_importance: o.LayerImportanceName = None,
    allocate: o.AllocateName = None,
    prune: o.Units = None,
    steps: o.Steps = None,
    amplitude: o.Amplitude = None,
    attention_ratio: o.AttentionRatio = None,
    refit: o.Refit = None,
    ridge: o.Ridge = None,
    rescale: o.Rescale = None,
    calib: o.Calib = None,
    calib_field: o.CalibField = None,
    calib_split: o.CalibSplit = None,
    sequences: o.Sequences = None,
    length: o.Length = None,
    batch_size: o.BatchSize = None,
    gradient_checkpointing: o.Checkpointing = None,
    ffn_multiple: o.FfnMultiple = None,
    min_ffn: o.MinFfn = None,
    round_for: o.RoundFor = None,
    protect_layers: o.ProtectLayers = None,
    seed: o.RecipeSeed = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Decide how wide every layer becomes, and show what that costs, before anything is cut."""
    given = _without(locals(), "model", "output", "picture", "overwrite", "revision", "json")
    made_by, goals, machine = _settings(**given)
    inputs = local(model, calib, latency_table, recipe)
    check_output_file(output, overwrite, what="plan", inputs=inputs)
    if picture:
        check_picture(picture, overwrite, inputs)
        check_different(output, picture)
    from prunekit.models.source import resolve
    from prunekit.pipeline import make_plan

    source = resolve(model, revision=revision)
    made = make_plan(source, recipe=made_by, **machine, **goals)
    made.save(output, overwrite)
    if picture:
        from prunekit.report.pictures import draw_widths

        draw_widths(made, picture, overwrite)
    if json:
        print_json({"plan": str(output), **plan_summary(made, source.dtype.itemsize)})
        return
    console().print(plan_tables(made, source.dtype.itemsize))
    console().print(f"Plan written to {output}. Apply it with: prunekit prune {model} --plan {output} -o DIR")


# What still has a meaning where a finished plan is applied.
_WITH_PLAN = {"model", "output", "plan", "layout", "store_dtype", "max_shard", "overwrite", "revision", "json"}
# What says on which text and how, where projections or biases are still to be computed.
_COMPUTING = {"calib", "batch_size", "dtype", "device"}


@app.command()
def prune(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new checkpoint.")],
    plan: Annotated[Path | None, typer.Option(help="Apply this plan, instead of making one.")] = None,
    layout: Annotated[
        str, typer.Option(help="per-layer, or uniform: padded with zeros to a stock architecture, no gain.")
    ] = "per-layer",
    store_dtype: Annotated[str, typer.Option(help="Store weights in auto, float32, bfloat16 or float16.")] = "auto",
    max_shard: Annotated[
        str, typer.Option(help="Largest size of one weight file; it is what memory must hold.")
    ] = "2GiB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    params: o.Params = None,
    blocks: o.Blocks = None,
    weights: o.Weights = None,
    flops: o.Flops = None,
    attended: o.Context = None,
    kv_cache: o.KvCache = None,
    latency: o.Latency = None,
    latency_table: o.LatencyTable = None,
    method: o.MethodName = None,
    recipe: o.RecipeFile = None,
    settings: o.Settings = None,
    importance: o.ImportanceName = None,
    layer_importance: o.LayerImportanceName = None,
    allocate: o.AllocateName = None,
    prune: o.Units = None,
    steps: o.Steps = None,
    amplitude: o.Amplitude = None,
    attention_ratio: o.AttentionRatio = None,
    refit: o.Refit = None,
    ridge: o.Ridge = None,
    rescale: o.Rescale = None,
    calib: o.Calib = None,
    calib_field: o.CalibField = None,
    calib_split: o.CalibSplit = None,
    sequences: o.Sequences = None,
    length: o.Length = None,
    batch_size: o.BatchSize = None,
    gradient_checkpointing: o.Checkpointing = None,
    ffn_multiple: o.FfnMultiple = None,
    min_ffn: o.MinFfn = None,
    round_for: o.RoundFor = None,
    protect_layers: o.ProtectLayers = None,
    seed: o.RecipeSeed = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint whose layers have their own widths."""
    given = _without(locals(), *_WITH_PLAN, "context")
    from prunekit import pipeline
    from prunekit.models.source import pick_dtype
    from prunekit.plan import Plan

    made_by, file = None, None
    asked: dict[str, Any] = {"dtype": dtype, "device": device}
    if plan is None:
        made_by, goals, machine = _settings(**given)
        asked = {**goals, **machine}
    else:
        file = Plan.load(plan)
        _refuse_beside_plan(context, _WITH_PLAN | (_COMPUTING if pipeline.computes(file) else set()))
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
        **asked,
    )
    made, written = pruned.plan, pruned.written
    stored = (pick_dtype(store_dtype) or pruned.source.dtype).itemsize
    if json:
        summary = plan_summary(made, stored)
        print_json({"checkpoint": str(output), "layout": layout, "architecture": written.architecture, **summary})
        return
    console().print(plan_tables(made, stored))
    console().print(f"Checkpoint written to {output} ({written.architecture}, {written.weight_bytes:,} weight bytes).")


def _is_given(context: typer.Context, name: str) -> bool:
    # By its name: typer's own copy of click has another enum of the same members.
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_beside_plan(context: typer.Context, allowed: set[str]) -> None:
    """A plan has decided everything that these options decide: silently ignoring one would mislead."""
    for name in sorted(set(context.params) - allowed):
        if _is_given(context, name):
            option = {"attended": "--context", "settings": "--set"}.get(name, f"--{name.replace('_', '-')}")
            raise PrunekitError(
                f"A plan already has its target, method and widths, so {option} would have no effect; leave it out, or "
                "leave out --plan."
            )


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
