"""Timing two models by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.models.source import as_source, load_model
from prunekit.profiling import compare
from prunekit.profiling.compare import BenchConfig, BenchReport, Contender, check_room, check_vocabularies
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.models.source import Source


def bench(
    model: Source | str,
    *,
    baseline: Source | str,
    config: BenchConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> BenchReport:
    """Time the first token and each further one of ``model`` and ``baseline`` in turns, in PyTorch, as `prunekit bench`
    does; peak memory is left to the command, which measures it in processes of their own.

    Raises PrunekitError where a model can't be had, or doesn't take prompts that long.

    >>> report = bench("smaller", baseline="smollm2-135m")  # doctest: +SKIP
    >>> report.results[0].tpot.ratio.median  # doctest: +SKIP
    0.83
    """
    config = config or BenchConfig()
    dense, pruned = as_source(baseline), as_source(model)
    for source in (dense, pruned):
        check_room(model_label(source.name), getattr(source.config, "max_position_embeddings", None), config)
    first, second = ((model_label(source.name), source.shape.vocab_size) for source in (dense, pruned))
    check_vocabularies(first, second)
    first_model, second_model = (
        Contender.of_model(
            load_model(source, dtype=dtype, device=device),
            source.shape,
            model_label(source.name),
            file_bytes=sum(path.stat().st_size for path in source.weight_files()),
        )
        for source in (dense, pruned)
    )
    return compare.bench(first_model, second_model, config)
