"""``prunekit bench``: what pruning brought in latency and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, deliver, table
from prunekit.cli.long_command import long
from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local

if TYPE_CHECKING:
    from prunekit.models.runner import TorchRunner
    from prunekit.profiling.compare import BenchReport
    from prunekit.utils.timing import Comparison


@app.command("bench")
@long
def bench_command(
    model: o.Model,
    baseline: o.Baseline,
    runtime: Annotated[
        str,
        typer.Option(
            autocompletion=o.complete_runtime,
            help="What runs both: torch (transformers), prunekit (the decode runtime of `prunekit generate`), or a "
            "target of `prunekit export`, such as onnx, onnx-genai, gguf. Checkpoints are exported first; folders "
            "that are exports are checked against their manifest, and taken as they are.",
        ),
    ] = "torch",
    batch_size: Annotated[list[int] | None, typer.Option(help=f"{o.BATCH_SIZE}: repeatable.", show_default="1")] = None,
    prompt_tokens: Annotated[int, typer.Option(help=f"{o.PROMPT_TOKENS}.")] = 128,
    new_tokens: Annotated[int, typer.Option(help=f"{o.NEW_TOKENS}.")] = 32,
    repeats: o.Repeats = 10,
    warmup: o.Warmup = 2,
    threads: o.Threads = None,
    memory: Annotated[
        bool,
        typer.Option(
            help="Measure peak memory, in a process for each model (torch and prunekit on a GPU: in this one)."
        ),
    ] = True,
    device: Annotated[
        str, typer.Option(help=f"{o.DEVICE} For exports auto is the CPU, unless they were compiled for a GPU.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help=f"{o.DTYPE}: for torch and prunekit auto (as stored), float32, bfloat16 or float16; for others as "
            "`prunekit export --list` says."
        ),
    ] = "auto",
    keep_exports: Annotated[
        Path | None,
        typer.Option(help="Keep exports in this folder, and take those that lie there.", show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help=f"{o.TRUST}: folders that are programs (exports for torchscript, torch-export, executorch), and "
            "tokenizers that are code. Say it only if you trust who made them: they can do all that you can.",
        ),
    ] = False,
    seed: o.Seed = 0,
    revision: o.Revision = None,
    baseline_revision: o.BaselineRevision = None,
    output: o.ReportFile = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Time prefill and decode of a pruned model and the one it came from, taking turns in one run."""
    from prunekit.profiling.compare import BenchConfig

    config = BenchConfig(tuple(batch_size or [1]), prompt_tokens, new_tokens, repeats, warmup, threads, seed)
    if output is not None:
        check_output_file(output, overwrite, what="report", inputs=local(model, baseline))
    if runtime in ("torch", "prunekit"):
        if keep_exports is not None:
            raise PrunekitError(f"--keep-exports is for other runtimes; {runtime} runs the checkpoint itself.")
        from prunekit.profiling.run import bench

        report = bench(
            model,
            baseline=baseline,
            config=config,
            memory=memory,
            dtype=dtype,
            device=device,
            revision=revision,
            baseline_revision=baseline_revision,
            runner=_runner(runtime),
            runtime=runtime,
        )
    else:
        from prunekit.export.bench import bench_exports

        report = bench_exports(
            (baseline, model),
            runtime,
            config,
            revisions=(baseline_revision, revision),
            dtype=dtype,
            memory=memory,
            keep=keep_exports,
            trust_remote_code=trust_remote_code,
            device=device,
        )
    deliver(report.to_dict(), output, as_json, lambda: _print(report), overwrite)


def _runner(runtime: str) -> type[TorchRunner]:
    from prunekit.models.runner import TorchRunner

    if runtime == "torch":
        return TorchRunner
    from prunekit.kernels.runtime.bench_runner import KernelRunner

    return KernelRunner


def _print(report: BenchReport) -> None:
    machine, config = report.machine, report.config
    out = console()
    out.print(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['device']}, {report.runtime}, {report.dtype}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        highlight=False,
    )
    sizes = table("What it takes", "", report.dense.name, report.pruned.name, "ratio")
    rows = (
        ("parameters", "parameters", 1e6, "M"),
        ("weight files", "file_bytes", 2**20, "MiB"),
        ("weights", "weight_bytes", 2**20, "MiB"),
        ("weights read a decode step", "decode_bytes", 2**20, "MiB"),
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
