"""Timing two models by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.checkpoint.record import plan_digest
from prunekit.models.runner import TorchRunner
from prunekit.models.source import as_source, load_model, pick_device
from prunekit.profiling import compare
from prunekit.profiling.compare import (
    BenchConfig,
    BenchReport,
    Contender,
    check_room,
    check_vocabularies,
    memory_of,
    timing_phases,
)
from prunekit.profiling.memory import HOW, measure_peak
from prunekit.utils.numerics.finite import check_files
from prunekit.utils.phases.telling import phases
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.models.source import Source


def bench(
    model: Source | str,
    *,
    baseline: Source | str,
    config: BenchConfig | None = None,
    memory: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
    runner: type[TorchRunner] = TorchRunner,
    runtime: str = "torch",
) -> BenchReport:
    """Time the first token and each further one of ``model`` and ``baseline`` in turns, in PyTorch, as `prunekit bench`
    does.

    ``memory`` measures peak memory on a CPU too, in a process for each model. ``runner`` is what computes, in reports
    called ``runtime``. Raises PrunekitError where a model can't be had, or doesn't take prompts that long.

    >>> report = bench("smaller", baseline="smollm2-135m")  # doctest: +SKIP
    >>> report.results[0].tpot.ratio.median  # doctest: +SKIP
    0.83
    """
    config = config or BenchConfig()
    sources = (as_source(baseline, revision=baseline_revision), as_source(model, revision=revision))
    dense_name, pruned_name = names = [model_label(source.name) for source in sources]
    # Before anything is loaded.
    for source, name in zip(sources, names, strict=True):
        check_room(name, getattr(source.config, "max_position_embeddings", None), config)
    sizes = [source.shape.vocab_size for source in sources]
    check_vocabularies((dense_name, sizes[0]), (pruned_name, sizes[1]))
    peaks: list[int | None] = [None, None]
    apart = memory and pick_device(device).type == "cpu"
    timed = [title for size in config.batch for title in timing_phases(size, config)]
    with phases(*map(memory_of, names if apart else ()), *timed):
        if apart:
            for source in sources:
                check_files(source.weight_files())
            # Before anything is loaded here, so that both don't have to fit at once with a third copy.
            peaks = [_peak(source, config, dtype, name, runtime) for source, name in zip(sources, names, strict=True)]
        dense, pruned = (
            Contender.of_model(
                load_model(source, dtype=dtype, device=device),
                source.shape,
                name,
                runner=runner,
                file_bytes=sum(path.stat().st_size for path in source.weight_files()),
                peak_bytes=peak,
                fingerprint=source.fingerprint,
                plan_sha256=plan_digest(source),
            )
            for source, name, peak in zip(sources, names, peaks, strict=True)
        )
        return compare.bench(dense, pruned, config, runtime=runtime, peak_how=HOW if apart else None)


def _peak(source: Source, config: BenchConfig, dtype: str, name: str, runtime: str) -> int | None:
    with progress(memory_of(name), 1) as advance:
        made = measure_peak(str(source.path), config, dtype, name=name, runtime=runtime)
        advance()
    return made
