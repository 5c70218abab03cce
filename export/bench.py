"""Timing two models in the runtime that they are exported for."""

from __future__ import annotations

from pathlib import Path

import torch

from prunekit.export.contender import contender, exporting, exports
from prunekit.export.export import OpenedExport
from prunekit.export.target import CPU
from prunekit.profiling.compare import BenchConfig, BenchReport, bench, check_room, timing_phases
from prunekit.profiling.memory import HOW, HOW_ON_GPU, measure_peak
from prunekit.utils.phases.telling import phases
from prunekit.utils.progress import progress

_BOTH = ("dense", "pruned")


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
    phases_of_both = [*map(exporting, names), *[f"peak memory, {each}" for each in _BOTH if memory]]
    with (
        phases(*phases_of_both, *(title for size in config.batch for title in timing_phases(size, config))),
        exports(
            names,
            runtime,
            dtype,
            revisions=revisions,
            batch=max(config.batch),
            at_least=room,
            keep=keep,
            trust_remote_code=trust_remote_code,
            device=device,
        ) as opened,
    ):
        for each in opened:
            check_room(each.name, each.context_length, config)
        place = opened[0].place(device)
        peaks: list[int | None] = [None, None]
        if memory:
            peaks = [_peak(title, each, config, runtime, place) for title, each in zip(_BOTH, opened, strict=True)]
        # Runtimes' own defaults differ, and the report tells PyTorch's number of threads.
        threads = config.threads or torch.get_num_threads()
        dense, pruned = (
            contender(each, threads, peak_bytes=peak, device=place) for each, peak in zip(opened, peaks, strict=True)
        )
        how = (HOW if place == CPU else HOW_ON_GPU) if memory else None
        with dense.runner, pruned.runner:
            return bench(dense, pruned, config, runtime=runtime, dtype=opened[0].dtype, peak_how=how, device=place)


def _peak(title: str, opened: OpenedExport, config: BenchConfig, runtime: str, device: str) -> int | None:
    with progress(f"peak memory, {title}", 1) as advance:
        own, seen = opened.own, opened.seen
        made = measure_peak(str(opened.path), config, runtime=runtime, own=own, seen=seen, device=device)
        advance()
    return made
