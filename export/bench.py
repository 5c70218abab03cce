"""Timing two models in the runtime that they are exported for."""

from __future__ import annotations

from pathlib import Path

from prunekit.export.contender import contender, exports
from prunekit.profiling.compare import BenchConfig, BenchReport, bench, check_room
from prunekit.profiling.memory import HOW, measure_peak


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
) -> BenchReport:
    """Time two models, the dense one first, in turns: exports as they are, anything else exported for ``runtime``
    first (:func:`prunekit.export.contender.exports`). ``memory`` measures peak memory in a process for each.

    Raises PrunekitError where an export can't be had or is not safe to open, or prompts are too long.
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
