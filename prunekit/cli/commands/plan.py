"""``prunekit plan`` and ``prunekit prune``: decide widths, then cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import Device, Dtype, Json, Model, Overwrite, Seed, app, console, print_json
from prunekit.cli.tables.plan import plan_summary, plan_tables
from prunekit.errors import PrunekitError
from prunekit.report.pictures import check_different, check_picture
from prunekit.utils.files.atomic import check_output_file, check_output_folder
from prunekit.utils.files.replacing import CHECKPOINT, local

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan

Picture = Annotated[Path | None, typer.Option(help="Also draw the widths of every layer into this .png or .svg.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]


# Options that are knobs of the recipe under another name.
_KNOBS = {"allocate": "allocation", "prune": "units"}


def _settings(**given: Any) -> dict[str, Any]:
    """What was asked for, and everything that can be checked before the model is looked for, checked."""
    from prunekit.plan.recipe import Recipe

    goals = {name: given.pop(name) for name in ("params", "blocks", "weights", "flops", "kv_cache", "latency")}
    target = o.target_of(**goals, context=given.pop("attended"), latency_table=given.pop("latency_table"))
    machine = {name: given.pop(name) for name in ("dtype", "device", "gradient_checkpointing")}
    recipe = Recipe.of(given.pop("method"), **{_KNOBS.get(name, name): value for name, value in given.items()})
    target.check_method(recipe.method)
    return {"target": target, "recipe": recipe, **machine}


def _make(source: Source, settings: dict[str, Any], store_dtype: str = "auto") -> Plan:
    from prunekit.pruning.planner import PlanConfig, compute_plan

    return compute_plan(source, PlanConfig(**settings, store_dtype=store_dtype))


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
    method: o.MethodName = "prunekit",
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
    calib_field: o.CalibField = "text",
    calib_split: o.CalibSplit = "train",
    sequences: o.Sequences = None,
    length: o.Length = None,
    batch_size: o.BatchSize = None,
    gradient_checkpointing: o.Checkpointing = None,
    ffn_multiple: o.FfnMultiple = None,
    min_ffn: o.MinFfn = None,
    round_for: o.RoundFor = None,
    protect_layers: o.ProtectLayers = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Decide how wide every layer becomes, and show what that costs, before anything is cut."""
    settings = _settings(**_without(locals(), "model", "output", "picture", "overwrite", "revision", "json"))
    inputs = local(model, calib, latency_table)
    check_output_file(output, overwrite, what="plan", inputs=inputs)
    if picture:
        check_picture(picture, overwrite, inputs)
        check_different(output, picture)
    from prunekit.models.source import resolve

    source = resolve(model, revision=revision)
    made = _make(source, settings)
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
    method: o.MethodName = "prunekit",
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
    calib_field: o.CalibField = "text",
    calib_split: o.CalibSplit = "train",
    sequences: o.Sequences = None,
    length: o.Length = None,
    batch_size: o.BatchSize = None,
    gradient_checkpointing: o.Checkpointing = None,
    ffn_multiple: o.FfnMultiple = None,
    min_ffn: o.MinFfn = None,
    round_for: o.RoundFor = None,
    protect_layers: o.ProtectLayers = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint whose layers have their own widths."""
    settings = None
    if plan is None:
        settings = _settings(**_without(locals(), *_WITH_PLAN, "context", "settings"))
    if layout not in ("per-layer", "uniform"):
        raise PrunekitError(f"The layout must be per-layer or uniform, got {layout!r}.")
    check_output_folder(output, overwrite, kind=CHECKPOINT, inputs=local(model, plan, calib, latency_table))
    from prunekit.checkpoint.rebuild import rebuild
    from prunekit.models.source import pick_dtype, resolve
    from prunekit.plan import Plan
    from prunekit.plan.goals import parse_size

    pick_dtype(store_dtype)
    shard_bytes = parse_size(max_shard, "--max-shard")
    made = Plan.load(plan) if plan else None
    if made is not None:
        _refuse_beside_plan(context, _WITH_PLAN | (_COMPUTING if _computes(made) else set()))
    source = resolve(model, revision=revision)
    if settings is not None and settings["recipe"].method.rotates:
        from prunekit.pruning.slicegpt import SliceConfig, slice_model

        settings.pop("gradient_checkpointing")
        config = SliceConfig(**settings, store_dtype=store_dtype)
        made, written = slice_model(source, config, output, overwrite=overwrite, max_shard_bytes=shard_bytes)
    else:
        made = made or _make(source, settings or {}, store_dtype)
        made, solved = _solved(source, made, calib, batch_size, dtype, device)
        written = rebuild(
            source,
            made,
            output,
            layout=layout,  # type: ignore[arg-type]
            dtype=store_dtype,
            weights=solved,
            overwrite=overwrite,
            max_shard_bytes=shard_bytes,
        )
    stored = (pick_dtype(store_dtype) or source.dtype).itemsize
    if json:
        summary = plan_summary(made, stored)
        print_json({"checkpoint": str(output), "layout": layout, "architecture": written.architecture, **summary})
        return
    console().print(plan_tables(made, stored))
    console().print(f"Checkpoint written to {output} ({written.architecture}, {written.weight_bytes:,} weight bytes).")


def _computes(plan: Plan) -> bool:
    from prunekit.recovery.flap_bias import is_compensated

    recipe = plan.read_recipe()
    return recipe is not None and (recipe.refit is not None or is_compensated(plan, recipe))


def _solved(
    source: Source, plan: Plan, given: str | None, batch_size: int | None, dtype: str, device: str
) -> tuple[Plan, dict[str, Any] | None]:
    """What is computed between plan and rebuild: refitted projections, or FLAP's biases; None where nothing is. And the
    plan, with the text that this was computed on if that is not its own."""
    from prunekit.data.from_plan import text_of, told
    from prunekit.models.dense import DenseModel
    from prunekit.recovery.flap_bias import compensate, is_compensated
    from prunekit.recovery.recover import refit_plan

    recipe = plan.read_recipe()
    if recipe is None or not (recipe.refit or is_compensated(plan, recipe)):
        return plan, None
    what = "projections are refitted on" if recipe.refit else "means were taken over"
    text = plan.text or text_of(source, plan, recipe, what, given=given, device=device)
    dense = DenseModel(source, dtype=dtype, device=device)
    if recipe.refit:
        return told(plan, text), refit_plan(dense, plan, recipe, text, batch_size).weights
    return told(plan, text), compensate(dense, plan, recipe, text, batch_size)


def _is_given(context: typer.Context, name: str) -> bool:
    # By its name: typer's own copy of click has another enum of the same members.
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_beside_plan(context: typer.Context, allowed: set[str]) -> None:
    """A plan has decided everything that these options decide: silently ignoring one would mislead."""
    for name in sorted(set(context.params) - allowed):
        if _is_given(context, name):
            option = {"attended": "--context"}.get(name, f"--{name.replace('_', '-')}")
            raise PrunekitError(
                f"A plan already has its target, method and widths, so {option} would have no effect; leave it out, or "
                "leave out --plan."
            )


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
