"""``prunekit candidates``: several sizes of a model, compared before any is made."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.asked import recipe_of
from prunekit.cli.common import app, console, print_json
from prunekit.cli.long_command import long
from prunekit.cli.tables.candidates import show_candidates


@app.command("candidates")
@long
def candidates_command(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.")] = Path("candidates"),
    overwrite: o.Overwrite = False,
    params: Annotated[
        str | None,
        typer.Option(
            help="Keep this share (0.9,0.8,0.7) or number of all parameters: a list, or one for all sizes.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Keep this share (0.9,0.8,0.7) of the decoder blocks' parameters: a list, or one for all sizes.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="Keep this share (0.9,0.8) or time (12ms) of the predicted latency: a list, or one for all sizes.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(
            help="Keep this share (0.8,0.6) or size (12KB) of the KV cache of a token: a list, or one for all sizes.",
            rich_help_panel=o.TARGET,
        ),
    ] = None,
    ships_as: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TARGET:DTYPE",
            autocompletion=o.complete_target,
            help="The format that will ship, such as gguf:q4_k_m or onnx:fp32: its file sizes, and below 16 bits the "
            "quality of its weights.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            "--eval",
            metavar="TEXT",
            help=f"Text to measure quality on that nothing was calibrated on: {o.FILES}, a Hugging Face dataset id, "
            "wikitext, or builtin.",
        ),
    ] = "builtin",
    length: Annotated[int, typer.Option(help=f"{o.LENGTH}: a window.")] = 512,
    max_tokens: Annotated[int, typer.Option(help="Use at most so many tokens of each text.")] = 16384,
    field: Annotated[
        str, typer.Option(help="The field or column of the rows that holds the text or the chat.")
    ] = "text",
    context: Annotated[
        int, typer.Option("--context", help=f"{o.CONTEXT}: of each user, prompt and answer, whose KV cache is counted.")
    ] = 2048,
    memory: Annotated[
        str | None,
        typer.Option("--device-memory", help="Memory to run in (8GB): how many users fit.", show_default=False),
    ] = None,
    latency_table: Annotated[
        list[Path] | None,
        typer.Option(
            help=f"{o.LATENCY_TABLE}: one of prefill, one of decode; with --latency the one by which it is met.",
            show_default=False,
        ),
    ] = None,
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
    """Compare several sizes of a model before any is made: measured quality, file size, memory, users.

    Every size is planned, pruned in memory as prune would do it, and evaluated beside the dense model. Plans go
    straight into prune --plan. What was finished is kept: the same command goes on.
    """
    from prunekit.evaluation.windows import EvalConfig
    from prunekit.pipeline.candidates.asked import check_options
    from prunekit.pipeline.candidates.run import candidates

    check_options({"params": params, "blocks": blocks, "latency": latency, "kv_cache": kv_cache})
    asked = {"effort": effort, "calib": calib, "round_for": round_for}
    used = recipe_of(method, recipe, settings, asked)
    made = candidates(
        model,
        output,
        params=params,
        blocks=blocks,
        latency=latency,
        kv_cache=kv_cache,
        recipe=used,
        text=text,
        config=EvalConfig(length, max_tokens=max_tokens, field=field),
        ships_as=ships_as,
        context=context,
        memory=memory,
        latency_tables=latency_table or (),
        dtype=dtype,
        device=device,
        revision=revision,
        overwrite=overwrite,
    )
    if json:
        print_json({"candidates": str(output), **made.to_dict()})
        return
    show_candidates(made)
    of = ["--revision", revision] if revision else []
    chosen = next((row.plan_file for row in made.rows if row.plan_file), None)
    from prunekit.data.mixture import parse_mix

    # A plan names its text, and no file by its path.
    read = used.calibration.source
    again = ["--calib", read] if any(Path(name).is_file() for name, _ in parse_mix(read)) else []
    # In another precision, or elsewhere, what the plan leaves would be solved to other weights.
    computed = [*(["--dtype", dtype] if dtype != "auto" else []), *(["--device", device] if device != "auto" else [])]
    words = ["prunekit", "prune", model, *of, "--plan", f"{output}/{chosen}", *again, *computed, "-o", "DIR"]
    console().print(f"Written to {output}: candidates.json, pareto.png and a plan for each size. Apply one with:")
    # Whole, however narrow the terminal is: it will be copied.
    console().print(shlex.join(words), soft_wrap=True)
