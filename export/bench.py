"""Timing two models in the runtime that they are exported for."""

from __future__ import annotations

from pathlib import Path

from prunekit.export.contender import contender, exports
from prunekit.export.target import CPU
from prunekit.profiling.compare import BenchConfig, BenchReport, bench, check_room
from prunekit.profiling.memory import HOW, HOW_ON_GPU, measure_peak


def bench_exports(
    names: tuple[str, str],
    runtime: str,
    config: BenchConfig,
    *,
    revisions: tuple[str | None, str | None] = (None, None),
    dtype: str = "auto",
    memory: bool = True,
    keep: Path | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
) -> BenchReport:
    """Time two models, the dense one first, in turns: exports as they are, anything else exported for ``runtime``
    first (:func:`prunekit.export.contender.exports`). ``memory`` measures peak memory in a process for each.
    ``device`` is where both run: cpu, cuda, cuda:1, or auto for the CPU, unless they were compiled for a GPU.

    Raises PrunekitError where an export can't be had, is not safe to open or does not run on ``device``, or prompts are
    too long.
    """
    room = config.prompt + config.tokens + 1
    with exports(
        names,
        runtime,
        dtype,
        revisions=revisions,
        batch=max(config.batch),
        at_least=room,
        keep=keep,
        trust_remote_code=trust_remote_code,
        device=device,
    ) as opened:
        for each in opened:
            check_room(each.name, each.context_length, config)
        place = opened[0].place(device)
        peaks = [
            measure_peak(str(each.path), config, runtime=runtime, own=each.own, seen=each.seen, device=place)
            if memory
            else None
            for each in opened
        ]
        dense, pruned = (
            contender(each, config.threads, peak_bytes=peak, device=place)
            for each, peak in zip(opened, peaks, strict=True)
        )
        how = (HOW if place == CPU else HOW_ON_GPU) if memory else None
        with dense.runner, pruned.runner:
            return bench(dense, pruned, config, runtime=runtime, dtype=opened[0].dtype, peak_how=how, device=place)
