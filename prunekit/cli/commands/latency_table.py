"""``prunekit latency-table``: what every width of a model's sub-layers takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.cli.long_command import long
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local

if TYPE_CHECKING:
    from prunekit.plan.latency_table import LatencyTable
    from prunekit.utils.timing import Summary


@app.command("latency-table")
@long
def latency_table_command(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a JSON file.")] = Path("latency.json"),
    overwrite: o.Overwrite = False,
    phase: Annotated[
        str, typer.Option(help="prefill: time to the first token; decode: time of each further one.")
    ] = "prefill",
    batch_size: Annotated[int, typer.Option(help=f"{o.BATCH_SIZE}.")] = 1,
    length: Annotated[
        int, typer.Option(help=f"{o.LENGTH}: for prefill the prompt, for decode what is in the KV cache.")
    ] = 512,
    widths: Annotated[int, typer.Option(help="FFN widths to measure, about; those between are interpolated.")] = 16,
    repeats: o.Repeats = 11,
    warmup: o.Warmup = 2,
    threads: o.Threads = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    seed: o.Seed = 0,
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Measure what attention and FFN take at every width, for --latency of plan and prune."""
    from prunekit.profiling.sublayer_latency import LatencyConfig, measure_table

    config = LatencyConfig(batch_size, length, phase, widths, repeats, warmup, threads, seed)
    check_output_file(output, overwrite, what="latency-table", inputs=local(model))
    from prunekit.models.source import resolve

    made = measure_table(resolve(model, revision=revision), config, dtype=dtype, device=device)
    made.save(output, overwrite)
    dense = made.cost().of(made.shape.layers)
    if json:
        print_json({"latency_table": str(output), "dense_seconds": round(dense * 1e-9, 9), **made.to_dict()})
        return
    _print(made)
    console().print(
        f"The dense model is predicted to take {dense * 1e-6:,.2f} ms, of which {made.rest.median * 1e3:,.2f} ms can't "
        f"be pruned. Table written to {output}. Use it with: prunekit plan {model} --latency 0.7 --latency-table "
        f"{output}"
    )


def _print(made: LatencyTable) -> None:
    said = made.conditions
    title = f"{said['phase']} of {said['batch']} x {said['length']} tokens, {said['dtype']}, {made.machine['device']}"
    shown = table(
        f"What a sub-layer takes ({title}, {said['threads']} threads)",
        "",
        "ms",
        "p20 to p80",
        caption=f"Medians of {said['repeats']} runs.",
    )
    for kind, measured in made.attention.items():
        words = "attention" if len(made.attention) == 1 else kind.replace("_", " ")
        for (kv, group), summary in measured.items():
            shown.add_row(f"{words}, {kv * group} query and {kv} KV heads", *_row(summary))
    for width, summary in made.ffn.items():
        shown.add_row(f"FFN, {width} channels", *_row(summary))
    shown.add_row("embedding, norm, head", *_row(made.rest))
    console().print(shown)


def _row(summary: Summary) -> tuple[str, str]:
    return f"{summary.median * 1e3:.4f}", f"{summary.p20 * 1e3:.4f} to {summary.p80 * 1e3:.4f}"
