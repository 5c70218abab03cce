"""What pruning brought in speed and memory: prefill and decode apart, both models taking turns in one run.

One interface for every runtime: what is timed is a :class:`prunekit.models.runner.Runner`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.runner import Runner, TorchRunner
from prunekit.plan.shape import ModelShape
from prunekit.utils.machine import cpu_threads, describe_machine
from prunekit.utils.progress import progress
from prunekit.utils.timing import Clock, Comparison, check_counts, compare, order, prompt_ids


@dataclass(frozen=True)
class BenchConfig:
    """Prompts of ``prompt`` tokens, then ``tokens`` decode steps, for each batch size; ``repeats`` measured runs of
    each model after ``warmup`` that are thrown away. ``threads`` is for the CPU (default: as torch chose)."""

    batch: tuple[int, ...] = (1,)
    prompt: int = 128
    tokens: int = 32
    repeats: int = 10
    warmup: int = 2
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.batch:
            raise PrunekitError("Name at least one batch size.")
        least = {"prompt": 1, "tokens": 1, "repeats": 2, "warmup": 0, "seed": 0}
        checks = [(name, getattr(self, name), bound) for name, bound in least.items()]
        checks += [("batch", size, 1) for size in self.batch]
        check_counts(checks, self.threads)


@dataclass(frozen=True)
class BatchResult:
    """Time to first token (``ttft``, one prefill) and time per output token (``tpot``) at one batch size."""

    batch: int
    ttft: Comparison
    tpot: Comparison


@dataclass(frozen=True)
class ModelFacts:
    """What a model costs to hold. ``decode_bytes`` are the weight bytes that one decode step reads; ``peak_bytes`` is
    None where it was not measured."""

    name: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    decode_bytes: int
    file_bytes: int | None = None
    peak_bytes: int | None = None


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


@dataclass(frozen=True)
class BenchReport:
    """Everything ``prunekit bench`` says."""

    dense: ModelFacts
    pruned: ModelFacts
    results: tuple[BatchResult, ...]
    config: BenchConfig
    machine: dict[str, Any]
    runtime: str
    dtype: str
    peak_how: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only. Times are in seconds; ratios are pruned/dense."""
        data = asdict(self)
        for result, made in zip(self.results, data["results"], strict=True):
            for name in ("ttft", "tpot"):
                made[name]["verdict"] = getattr(result, name).verdict
        for name in ("parameters", "weight_bytes", "kv_bytes_per_token", "decode_bytes", "file_bytes", "peak_bytes"):
            dense, pruned = getattr(self.dense, name), getattr(self.pruned, name)
            data.setdefault("ratios", {})[name] = pruned / dense if dense and pruned is not None else None
        return data


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
) -> BenchReport:
    """Time ``dense`` and ``pruned`` in turns (A B B A …), so that drift of the machine hits both alike.

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
        results = tuple(_batch(both, size, config, clock) for size in config.batch)
        facts = [each.facts for each in both]
        if models and place.type == "cuda" and facts[0].peak_bytes is None:
            facts = [
                replace(each, peak_bytes=_cuda_peak(model, config)) for each, model in zip(facts, models, strict=True)
            ]
            peak_how = (
                "torch.cuda.max_memory_allocated over one run at the largest batch, less the other model's weights"
            )
    return BenchReport(facts[0], facts[1], results, config, machine, runtime, dtype, peak_how)


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


def timing(size: int) -> str:
    """What the phase is called in which that batch size is timed."""
    return f"timing at batch size {size}"


def memory_of(name: str) -> str:
    """What the phase is called in which the peak memory of a model is measured."""
    return f"peak memory of {name}"


def _batch(both: tuple[Contender, Contender], size: int, config: BenchConfig, clock: Clock) -> BatchResult:
    ids = prompt_ids(size, config.prompt, both[0].shape.vocab_size, config.seed).numpy()
    prefill: tuple[list[float], list[float]] = ([], [])
    decode: tuple[list[float], list[float]] = ([], [])
    turns = order(config.repeats)
    with progress(timing(size), 2 * config.warmup + len(turns)) as advance:
        for index in order(config.warmup):
            both[index].runner.greedy(ids, config.tokens + 1)
            advance()
        for index in turns:
            # The first token comes from the prefill.
            run = both[index].runner.greedy(ids, config.tokens + 1, clock)
            prefill[index].append(run.ttft)
            decode[index].append(run.tpot)
            advance()
    dense, pruned = both
    return BatchResult(
        size,
        compare(prefill[0], prefill[1], ideal_prefill_ratio(dense.shape, pruned.shape, config.prompt)),
        compare(decode[0], decode[1], ideal_decode_ratio(dense.facts, pruned.facts, config, size)),
    )


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
