"""``prunekit bench``: what pruning brought in latency and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, deliver
from prunekit.cli.long_command import long
from prunekit.cli.tables.bench import show
from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local

if TYPE_CHECKING:
    from prunekit.models.runner import TorchRunner


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
    max_minutes: Annotated[
        float,
        typer.Option(
            help=f"{o.MAX_MINUTES}: more runs until the 95 % interval of every median ratio is at most 5 % wide; 0 "
            "takes --repeats runs."
        ),
    ] = 2.0,
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
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help=f"{o.ENERGY}: joules a token at the largest batch size, for about two minutes more; where there is no "
            "counter, say why.",
        ),
    ] = False,
    assume_watts: Annotated[
        float | None,
        typer.Option(help="Where energy is not measured, estimate it from these watts.", show_default=False),
    ] = None,
    prices: o.PricesFile = None,
    seed: o.Seed = 0,
    revision: o.Revision = None,
    baseline_revision: o.BaselineRevision = None,
    output: o.ReportFile = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Time prefill and decode of a pruned model and the one it came from, taking turns in one run.

    A figure that should not be believed says so and why: other processes were busy, runs do not repeat, or numbers
    contradict each other.
    """
    from prunekit.profiling.bench_report import BenchConfig
    from prunekit.profiling.costs import costs
    from prunekit.profiling.prices import Prices

    config = BenchConfig(
        tuple(batch_size or [1]),
        prompt_tokens,
        new_tokens,
        repeats,
        warmup,
        threads,
        seed,
        max_minutes,
        energy,
        assume_watts,
    )
    if output is not None:
        check_output_file(output, overwrite, what="report", inputs=local(model, baseline, prices))
    priced = None if prices is None else Prices.load(prices)
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
    cost = None if priced is None else costs(report, priced)
    data = {**report.to_dict(), "cost": None if cost is None else cost.to_dict()}
    deliver(data, output, as_json, lambda: show(report, cost), overwrite)


def _runner(runtime: str) -> type[TorchRunner]:
    from prunekit.models.runner import TorchRunner

    if runtime == "torch":
        return TorchRunner
    from prunekit.kernels.runtime.bench_runner import KernelRunner

    return KernelRunner
