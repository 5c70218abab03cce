"""``prunekit plan``: decide widths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.asked import read_asked
from prunekit.cli.common import app, console, print_json
from prunekit.cli.launch import on_all_ranks
from prunekit.cli.long_command import long
from prunekit.cli.tables.plan import plan_summary, plan_tables
from prunekit.cli.tables.reasons import why_tables
from prunekit.report.pictures import check_different, check_picture
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local
from prunekit.utils.process.ranks import from_first


@app.command()
@on_all_ranks
@long
def plan(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a JSON file.")] = Path("plan.json"),
    picture: Annotated[Path | None, typer.Option(help=f"{o.PICTURE}: .png or .svg.", show_default=False)] = None,
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
    """Decide how wide every layer becomes, and show what that costs, before anything is cut."""
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
    asked = {"effort": effort, "calib": calib, "round_for": round_for}
    made_by = read_asked(goals, method, recipe, settings, asked)
    inputs = local(model, calib, latency_table, recipe)

    def check() -> None:
        check_output_file(output, overwrite, what="plan", inputs=inputs)
        if picture:
            check_picture(picture, overwrite, inputs)
            check_different(output, picture)

    from_first(check)
    from prunekit.models.source import resolve
    from prunekit.pipeline import make_plan

    source = resolve(model, revision=revision)
    made = make_plan(source, recipe=made_by, dtype=dtype, device=device, **goals)

    def write() -> None:
        made.save(output, overwrite)
        if picture:
            from prunekit.report.pictures import draw_widths

            draw_widths(made, picture, overwrite)

    from_first(write)
    if json:
        print_json({"plan": str(output), **plan_summary(made, source.dtype.itemsize)})
        return
    console().print(plan_tables(made, source.dtype.itemsize))
    console().print(why_tables(made))
    of = f" --revision {revision}" if revision else ""
    console().print(f"Plan written to {output}. Apply it with: prunekit prune {model}{of} --plan {output} -o DIR")
