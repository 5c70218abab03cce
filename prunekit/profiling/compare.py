"""What pruning brought in speed and memory: prefill and decode apart, both models taking turns in one run.

One interface for every runtime: what is timed is a :class:`prunekit.models.runner.Runner`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.runner import Runner, TorchRunner
from prunekit.plan.shape import ModelShape
from prunekit.profiling.bench_report import BatchResult, BenchConfig, BenchReport, ModelFacts
from prunekit.profiling.energy import Energy, estimated_energy, expected_seconds, measure_energy, open_sensor
from prunekit.profiling.prices import throughput
from prunekit.profiling.turns import Until, take_turns, until_narrow
from prunekit.utils.machine import cpu_threads, describe_machine
from prunekit.utils.measuring.load import Counters, load_during, read_counters
from prunekit.utils.phases.telling import foresee, unneeded
from prunekit.utils.progress import progress
from prunekit.utils.timing import Clock, compare, order, prompt_ids

# The machine is watched for so long before anything is timed.
_WATCHED = 0.5


@dataclass(frozen=True)
class Contender:
    """One of the two models: what runs it, its geometry and costs, and how many positions it can take (None: any)."""

    runner: Runner
    shape: ModelShape
    facts: ModelFacts
    positions: int | None = None

    @classmethod
    def of_model(
        cls, model: Any, shape: ModelShape, name: str, *, runner: type[TorchRunner] = TorchRunner, **facts: Any
    ) -> Contender:
        """A transformers model. ``facts`` are fields of :class:`ModelFacts` that the model itself doesn't tell."""
        element = next(model.parameters()).element_size()
        return cls(
            runner(model),
            shape,
            ModelFacts(
                name=name,
                parameters=shape.parameters,
                weight_bytes=weight_bytes(model),
                kv_bytes_per_token=shape.kv_bytes_per_token(element),
                decode_bytes=shape.decode_bytes(element, 0),
                **facts,
            ),
            getattr(model.config, "max_position_embeddings", None),
        )


def bench(
    dense: Contender,
    pruned: Contender,
    config: BenchConfig | None = None,
    *,
    runtime: str = "torch",
    dtype: str = "",
    peak_how: str | None = None,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
    now: Clock = time.monotonic,
    counters: Callable[[], Counters] = read_counters,
) -> BenchReport:
    """Time ``dense`` and ``pruned`` in turns (A B B A …), so that drift of the machine hits both alike.

    ``clock`` times a run, ``now`` says when ``config.max_minutes`` are up, and ``counters`` what the machine does.

    ``runtime``, ``dtype`` and ``device`` are for the report; transformers models tell the last two themselves. On CUDA
    the peak memory of transformers models is measured here, unless their facts hold it. Elsewhere it must be measured
    in a process of its own (:mod:`prunekit.profiling.memory`). Raises PrunekitError where the two can't take the same
    prompts.
    """
    config = config or BenchConfig()
    check_contenders(dense, pruned, config)
    both = (dense, pruned)
    place: Any = device
    models = [each.runner.model for each in both if isinstance(each.runner, TorchRunner)]
    if models:
        dtypes = [str(next(model.parameters()).dtype).removeprefix("torch.") for model in models]
        if len(set(dtypes)) > 1:
            raise PrunekitError(
                f"{dense.facts.name} is in {dtypes[0]} and {pruned.facts.name} in {dtypes[1]}; give one --dtype for "
                "both."
            )
        place, dtype = next(models[0].parameters()).device, dtypes[0]
    with cpu_threads(config.threads):
        for each in both:
            _check_logits(each, config.seed)
        machine = describe_machine(place)
        if config.energy:
            foresee({_energy_of(max(config.batch)): expected_seconds()})
        watched = load_during(_WATCHED)
        results = tuple(_batch(both, size, config, clock, now, counters) for size in config.batch)
        energy = _energy(both, config, str(place), results)
        facts = [each.facts for each in both]
        if models and place.type == "cuda" and facts[0].peak_bytes is None:
            facts = [
                replace(each, peak_bytes=_cuda_peak(model, config)) for each, model in zip(facts, models, strict=True)
            ]
            peak_how = (
                "torch.cuda.max_memory_allocated over one run at the largest batch, less the other model's weights"
            )
    return BenchReport(facts[0], facts[1], results, config, machine, runtime, dtype, peak_how, watched, energy)


def _check_logits(contender: Contender, seed: int) -> None:
    """Times of a model that computes nothing mean nothing."""
    import numpy as np

    from prunekit.utils.numerics.finite import blame_layer

    ids = prompt_ids(1, 8, contender.shape.vocab_size, seed).numpy()
    runner = contender.runner
    if not np.isfinite(runner.start(ids)).all():
        if isinstance(runner, TorchRunner):
            blame_layer(runner.model, lambda: runner.start(ids), contender.facts.name)
        raise PrunekitError(
            f"{contender.facts.name} gives logits that are not finite numbers; its weights are damaged, or its dtype "
            "is too small for them. Take --dtype float32, and if that does not help make it again."
        )


def check_contenders(dense: Contender, pruned: Contender, config: BenchConfig) -> None:
    """Raises PrunekitError where the two can't both take ``config``'s prompts."""
    for each in (dense, pruned):
        check_room(each.facts.name, each.positions, config)
        most = each.runner.max_batch
        if most is not None and max(config.batch) > most:
            raise PrunekitError(f"This runtime takes at most {most} at once; choose a smaller batch size.")
    check_vocabularies((dense.facts.name, dense.shape.vocab_size), (pruned.facts.name, pruned.shape.vocab_size))


def check_room(name: str, positions: int | None, config: BenchConfig) -> None:
    """Raises PrunekitError where ``config``'s prompts and answers are longer than a model's ``positions``."""
    if positions is not None and config.prompt + config.tokens > positions:
        raise PrunekitError(
            f"A prompt of {config.prompt} and {config.tokens} more tokens are beyond the {positions} positions {name} "
            "was made for; choose a shorter prompt or fewer new tokens."
        )


def check_vocabularies(dense: tuple[str, int], pruned: tuple[str, int]) -> None:
    """Raises PrunekitError where two models, each a name and a vocabulary size, can't take the same token ids."""
    if dense[1] != pruned[1]:
        raise PrunekitError(
            f"{dense[0]} has a vocabulary of {dense[1]:,} and {pruned[0]} of {pruned[1]:,}, so they "
            "can't take the same prompts; compare a model with the one it was pruned from."
        )


def weight_bytes(model: Any) -> int:
    """Bytes of a model's parameters in memory; shared ones count once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def ideal_prefill_ratio(dense: ModelShape, pruned: ModelShape, prompt: int) -> float:
    """Ratio of FLOPs of a prefill of ``prompt`` tokens, where only the last one goes through the output head."""

    def flops(shape: ModelShape) -> int:
        head = 2 * shape.vocab_size * shape.hidden_size
        # FLOPs grow by the same amount with every attended token, so the sum needs only its ends.
        every = prompt * (shape.flops_per_token(0) + shape.flops_per_token(prompt - 1)) // 2
        return every - (prompt - 1) * head

    return flops(pruned) / flops(dense)


def ideal_decode_ratio(dense: ModelFacts, pruned: ModelFacts, config: BenchConfig, batch: int) -> float:
    """Ratio of bytes that a decode step must read: the weights once, each sequence's KV cache at its mean length."""
    context = batch * (config.prompt + config.tokens // 2)
    first, second = (each.decode_bytes + context * each.kv_bytes_per_token for each in (dense, pruned))
    return second / first


def timing_phases(size: int, config: BenchConfig) -> tuple[str, ...]:
    """What the phases are called in which that batch size is timed."""
    title = _timing(size)
    energy = [_energy_of(size)] if config.energy and size == max(config.batch) else []
    return (_warming(size), title, *([until_narrow(title)] if config.max_minutes else []), *energy)


def memory_of(name: str) -> str:
    """What the phase is called in which the peak memory of a model is measured."""
    return f"peak memory of {name}"


def _energy_of(size: int) -> str:
    return f"energy at batch size {size}"


def _warming(size: int) -> str:
    return f"warm-up at batch size {size}"


def _timing(size: int) -> str:
    return f"timing at batch size {size}"


def _batch(
    both: tuple[Contender, Contender],
    size: int,
    config: BenchConfig,
    clock: Clock,
    now: Clock,
    counters: Callable[[], Counters],
) -> BatchResult:
    ids = prompt_ids(size, config.prompt, both[0].shape.vocab_size, config.seed).numpy()
    with progress(_warming(size), 2 * config.warmup) as advance:
        for index in order(config.warmup):
            both[index].runner.greedy(ids, config.tokens + 1)
            advance()
    made = take_turns(
        # The first token comes from the prefill.
        lambda index: both[index].runner.greedy(ids, config.tokens + 1, clock),
        Until(config.repeats, 60 * config.max_minutes / len(config.batch)),
        _timing(size),
        now=now,
        counters=counters,
    )
    dense, pruned = both
    ideals = (
        ideal_prefill_ratio(dense.shape, pruned.shape, config.prompt),
        ideal_decode_ratio(dense.facts, pruned.facts, config, size),
    )
    ttft, tpot = (
        replace(found, doubts=(*made.doubts, *found.doubts))
        for found in (compare(*made.ttft, ideals[0]), compare(*made.tpot, ideals[1]))
    )
    return BatchResult(size, ttft, tpot, made.stopped, made.load)


def _energy(
    both: tuple[Contender, Contender], config: BenchConfig, device: str, results: tuple[BatchResult, ...]
) -> Energy | None:
    """At the largest batch size; None where nobody asked."""
    if not config.energy and config.assume_watts is None:
        return None
    result = max(results, key=lambda each: each.batch)
    pairs = ((result.ttft.dense, result.tpot.dense), (result.ttft.pruned, result.tpot.pruned))
    made = None
    if config.energy:
        ids = prompt_ids(result.batch, config.prompt, both[0].shape.vocab_size, config.seed).numpy()

        def run(index: int) -> int:
            both[index].runner.greedy(ids, config.tokens + 1)
            return result.batch * (config.tokens + 1)

        try:
            sensor = open_sensor(device)
            runs = [ttft.median + config.tokens * tpot.median for ttft, tpot in pairs]
            expected = expected_seconds((runs[0], runs[1]))
            foresee({_energy_of(result.batch): expected})
            with progress(_energy_of(result.batch), expected) as advance:
                made = measure_energy(sensor, run, result.batch, advance=advance)
        except PrunekitError as error:
            made = Energy("not measured", result.batch, str(error).rstrip("."))
            unneeded(_energy_of(result.batch), "no counter")
        if made.status == "measured" or config.assume_watts is None:
            return made
    assert config.assume_watts is not None
    rates = [throughput(result.batch, config.tokens, ttft.median, tpot.median)[0] for ttft, tpot in pairs]
    return estimated_energy(config.assume_watts, result.batch, (rates[0], rates[1]), made.why if made else None)


def _cuda_peak(model: Any, config: BenchConfig) -> int:
    """Bytes allocated at most while ``model`` runs once at the largest batch: its weights, cache and activations."""
    import torch

    device = next(model.parameters()).device
    ids = prompt_ids(max(config.batch), config.prompt, model.config.vocab_size, config.seed)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    TorchRunner(model).greedy(ids, config.tokens + 1)
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(model)
