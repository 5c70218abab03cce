"""``prunekit bench``: what pruning brought in latency and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.common import Device, Dtype, Json, Model, Seed, app, console, deliver, table
from prunekit.files import check_output_file
from prunekit.provenance import model_label

if TYPE_CHECKING:
    from prunekit.bench import BenchReport
    from prunekit.timing import Comparison


@app.command("bench")
def bench_command(
    model: Model,
    baseline: Annotated[str, typer.Option(help="The model it was pruned from.")],
    batch: Annotated[list[int] | None, typer.Option(help="Batch size (default 1). Repeatable.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens decoded after it.")] = 32,
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 10,
    warmup: Annotated[int, typer.Option(help="Runs of each model before measuring.")] = 2,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default=False)] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory (on the CPU: in a process for each model).")] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report here as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Time prefill and decode of a pruned model and the one it came from, taking turns in one run."""
    from prunekit.bench import BenchConfig, bench, check_models

    config = BenchConfig(tuple(batch or [1]), prompt, tokens, repeats, warmup, threads, seed)
    if output is not None:
        check_output_file(output)

    from prunekit.bench_memory import HOW, measure_peak
    from prunekit.source import load_model, pick_device, resolve

    dense, pruned = resolve(baseline), resolve(model)
    names = (model_label(dense.name), model_label(pruned.name))
    check_models(dense.config, pruned.config, config, names)
    peaks = None
    if memory and pick_device(device).type == "cpu":
        # Before anything is loaded here, so that both don't have to fit at once with a third copy.
        peaks = (measure_peak(baseline, config, dtype), measure_peak(model, config, dtype))
    report = bench(
        load_model(dense, dtype=dtype, device=device),
        load_model(pruned, dtype=dtype, device=device),
        (dense.shape, pruned.shape),
        config,
        names=names,
        file_bytes=tuple(sum(path.stat().st_size for path in source.weight_files()) for source in (dense, pruned)),  # type: ignore[arg-type]
        peaks=peaks,
        peak_how=HOW if peaks else None,
    )
    deliver(report.to_dict(), output, as_json, lambda: _print(report))


def _print(report: BenchReport) -> None:
    machine, config = report.machine, report.config
    out = console()
    out.print(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['device']}, {report.dtype}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        highlight=False,
    )
    sizes = table("What it takes", "", report.dense.name, report.pruned.name, "ratio")
    rows = (
        ("parameters", "parameters", 1e6, "M"),
        ("weight files", "file_bytes", 2**20, "MiB"),
        ("weights in memory", "weight_bytes", 2**20, "MiB"),
        ("KV cache a token", "kv_bytes_per_token", 2**10, "KiB"),
        ("peak memory", "peak_bytes", 2**20, "MiB"),
    )
    for title, name, unit, suffix in rows:
        dense, pruned = getattr(report.dense, name), getattr(report.pruned, name)
        if dense and pruned is not None:
            sizes.add_row(
                title, f"{dense / unit:,.1f} {suffix}", f"{pruned / unit:,.1f} {suffix}", f"{pruned / dense:.3f}"
            )
    out.print(sizes)
    shown = table(
        f"What it gains (prompt {config.prompt}, {config.tokens} tokens decoded, {config.repeats} runs each)",
        "",
        "dense ms",
        "pruned ms",
        "ratio",
        "p20 to p80",
        "ideal",
        "verdict",
        caption="Medians. Ratio: pruned/dense of neighbouring runs, below 1 is faster. Ideal: FLOPs for the first "
        "token, bytes read for the others. No gain is shown where p20 to p80 includes 1.",
    )
    for result in report.results:
        shown.add_row(*_row(f"first token, batch {result.batch}", result.ttft))
        shown.add_row(*_row(f"each further token, batch {result.batch}", result.tpot))
    out.print(shown)
    if report.peak_how:
        out.print(f"Peak memory: {report.peak_how}.", highlight=False)


def _row(title: str, comparison: Comparison) -> tuple[str, ...]:
    ratio = comparison.ratio
    return (
        title,
        f"{comparison.dense.median * 1e3:,.2f}",
        f"{comparison.pruned.median * 1e3:,.2f}",
        f"{ratio.median:.3f}",
        f"{ratio.p20:.3f} to {ratio.p80:.3f}",
        f"{comparison.ideal_ratio:.3f}",
        comparison.verdict,
    )
