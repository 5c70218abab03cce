"""``prunekit bench``: what pruning brought in latency and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.common import Device, Json, Model, Overwrite, Seed, app, console, deliver, table
from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.profiling.compare import BenchConfig, BenchReport
    from prunekit.utils.timing import Comparison


@app.command("bench")
def bench_command(
    model: Model,
    baseline: Annotated[str, typer.Option(help="The model it was pruned from.")],
    runtime: Annotated[
        str,
        typer.Option(
            help="What runs both: torch (transformers), prunekit (the decode runtime of `prunekit generate`), or a "
            "target of `prunekit export`, such as onnx, onnx-genai, gguf. Checkpoints are exported first; folders "
            "that are exports are checked against their manifest, and taken as they are."
        ),
    ] = "torch",
    batch: Annotated[list[int] | None, typer.Option(help="Batch size (default 1). Repeatable.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens decoded after it.")] = 32,
    repeats: Annotated[int, typer.Option(help="Measured runs of each model.")] = 10,
    warmup: Annotated[int, typer.Option(help="Runs of each model before measuring.")] = 2,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default=False)] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory (on the CPU: in a process for each model).")] = True,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="torch: auto (as stored), float32, bfloat16 or float16. Others: as `prunekit export --list` says."
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
            help="Open folders that are programs (exports for torchscript, torch-export, executorch), and run "
            "tokenizers that are code. Say it only if you trust who made them: they can do all that you can.",
        ),
    ] = False,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report here as JSON.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time prefill and decode of a pruned model and the one it came from, taking turns in one run."""
    from prunekit.profiling.compare import BenchConfig

    config = BenchConfig(tuple(batch or [1]), prompt, tokens, repeats, warmup, threads, seed)
    if output is not None:
        check_output_file(output, overwrite, what="report", inputs=local(model, baseline))
    if runtime in ("torch", "prunekit"):
        if keep_exports is not None:
            raise PrunekitError(f"--keep-exports is for other runtimes; {runtime} runs the checkpoint itself.")
        report = _in_torch(model, baseline, runtime, config, memory, device, dtype)
    else:
        if device not in ("auto", "cpu"):
            raise PrunekitError(f"{runtime} is timed on the CPU; leave --device {device} out.")
        report = _in_runtime(model, baseline, runtime, config, memory, dtype, keep_exports, trust_remote_code)
    deliver(report.to_dict(), output, as_json, lambda: _print(report), overwrite)


def _in_torch(
    model: str, baseline: str, runtime: str, config: BenchConfig, memory: bool, device: str, dtype: str
) -> BenchReport:
    from prunekit.models.runner import TorchRunner
    from prunekit.models.source import load_model, pick_device, resolve
    from prunekit.profiling.compare import Contender, bench, check_room, check_vocabularies
    from prunekit.profiling.memory import HOW, measure_peak

    runner: type[TorchRunner] = TorchRunner
    if runtime == "prunekit":
        from prunekit.kernels.runtime.bench_runner import KernelRunner

        runner = KernelRunner
    sources = (resolve(baseline), resolve(model))
    names = [model_label(source.name) for source in sources]
    # Before anything is loaded.
    for source, name in zip(sources, names, strict=True):
        check_room(name, getattr(source.config, "max_position_embeddings", None), config)
    check_vocabularies(*((name, source.shape.vocab_size) for source, name in zip(sources, names, strict=True)))  # type: ignore[arg-type]
    peaks: list[int | None] = [None, None]
    apart = memory and pick_device(device).type == "cpu"
    if apart:
        from prunekit.utils.numerics.finite import check_files

        for source in sources:
            check_files(source.weight_files())
        # Before anything is loaded here, so that both don't have to fit at once with a third copy.
        peaks = [measure_peak(each, config, dtype, runtime=runtime) for each in (baseline, model)]
    dense, pruned = (
        Contender.of_model(
            load_model(source, dtype=dtype, device=device),
            source.shape,
            name,
            runner=runner,
            file_bytes=sum(path.stat().st_size for path in source.weight_files()),
            peak_bytes=peak,
        )
        for source, name, peak in zip(sources, names, peaks, strict=True)
    )
    return bench(dense, pruned, config, runtime=runtime, peak_how=HOW if apart else None)


def _in_runtime(
    model: str,
    baseline: str,
    runtime: str,
    config: BenchConfig,
    memory: bool,
    dtype: str,
    keep: Path | None,
    trust_remote_code: bool,
) -> BenchReport:
    from prunekit.export.contender import contender, exports
    from prunekit.profiling.compare import bench, check_room
    from prunekit.profiling.memory import HOW, measure_peak

    room = config.prompt + config.tokens + 1
    with exports(
        (baseline, model),
        runtime,
        dtype,
        batch=max(config.batch),
        at_least=room,
        keep=keep,
        trust_remote_code=trust_remote_code,
    ) as opened:
        for each in opened:
            check_room(each.name, each.context_length, config)
        peaks = [
            measure_peak(str(each.path), config, runtime=runtime, own=each.own, seen=each.seen) if memory else None
            for each in opened
        ]
        dense, pruned = (
            contender(each, config.threads, peak_bytes=peak) for each, peak in zip(opened, peaks, strict=True)
        )
        with dense.runner, pruned.runner:
            return bench(
                dense, pruned, config, runtime=runtime, dtype=opened[0].dtype, peak_how=HOW if memory else None
            )


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
