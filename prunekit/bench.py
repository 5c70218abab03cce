"""What pruning brought in speed and memory: prefill and decode apart, both models taking turns in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.machine import describe_machine
from prunekit.progress import progress
from prunekit.shape import ModelShape
from prunekit.timing import Clock, Comparison, compare, order, prompt_ids, run_once


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
        if self.threads is not None:
            checks.append(("threads", self.threads, 1))
        for name, value, bound in checks:
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise PrunekitError(f"{name.capitalize()} must be a whole number of at least {bound}, got {value!r}.")


@dataclass(frozen=True)
class BatchResult:
    """Time to first token (``ttft``, one prefill) and time per output token (``tpot``) at one batch size."""

    batch: int
    ttft: Comparison
    tpot: Comparison


@dataclass(frozen=True)
class ModelFacts:
    """What a model costs to hold. ``peak_bytes`` is None where it was not measured."""

    name: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    file_bytes: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class BenchReport:
    """Everything ``prunekit bench`` says."""

    dense: ModelFacts
    pruned: ModelFacts
    results: tuple[BatchResult, ...]
    config: BenchConfig
    machine: dict[str, Any]
    dtype: str
    peak_how: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only. Times are in seconds; ratios are pruned/dense."""
        data = asdict(self)
        for result, made in zip(self.results, data["results"], strict=True):
            for name in ("ttft", "tpot"):
                made[name]["verdict"] = getattr(result, name).verdict
        for name in ("parameters", "weight_bytes", "kv_bytes_per_token", "file_bytes", "peak_bytes"):
            dense, pruned = getattr(self.dense, name), getattr(self.pruned, name)
            data.setdefault("ratios", {})[name] = pruned / dense if dense and pruned is not None else None
        return data


def bench(
    dense: Any,
    pruned: Any,
    shapes: tuple[ModelShape, ModelShape],
    config: BenchConfig | None = None,
    *,
    names: tuple[str, str] = ("dense", "pruned"),
    file_bytes: tuple[int, int] | None = None,
    peaks: tuple[int | None, int | None] | None = None,
    peak_how: str | None = None,
    clock: Clock = time.perf_counter,
) -> BenchReport:
    """Time ``dense`` and ``pruned`` in turns (A B B A …), so that drift of the machine hits both alike.

    ``shapes`` are those of (dense, pruned). On CUDA the peak memory of each model is measured here unless ``peaks``
    gives it; elsewhere it must be measured in a process of its own (:func:`prunekit.bench_memory.measure_peak`).
    Raises PrunekitError where the models can't take the same prompts.
    """
    import torch

    config = config or BenchConfig()
    models = (dense.eval(), pruned.eval())
    check_models(dense.config, pruned.config, config, names)
    dtypes = [next(model.parameters()).dtype for model in models]
    if dtypes[0] != dtypes[1]:
        raise PrunekitError(f"{names[0]} is in {dtypes[0]} and {names[1]} in {dtypes[1]}; give one --dtype for both.")
    device = next(dense.parameters()).device
    element = dtypes[0].itemsize
    with _threads(config.threads), torch.inference_mode():
        machine = describe_machine(device)
        results = tuple(_batch(models, shapes, size, config, element, clock) for size in config.batch)
        if peaks is None and device.type == "cuda":
            peaks = (_cuda_peak(dense, config), _cuda_peak(pruned, config))
            peak_how = (
                "torch.cuda.max_memory_allocated over one run at the largest batch, less the other model's weights"
            )
    facts = [
        ModelFacts(
            name=names[index],
            parameters=shape.parameters,
            weight_bytes=weight_bytes(model),
            kv_bytes_per_token=shape.kv_bytes_per_token(element),
            file_bytes=file_bytes[index] if file_bytes else None,
            peak_bytes=peaks[index] if peaks else None,
        )
        for index, (model, shape) in enumerate(zip(models, shapes, strict=True))
    ]
    return BenchReport(facts[0], facts[1], results, config, machine, str(dtypes[0]).removeprefix("torch."), peak_how)


def check_models(dense: Any, pruned: Any, config: BenchConfig, names: tuple[str, str] = ("dense", "pruned")) -> None:
    """Raises PrunekitError where models of these two transformers configs can't both take ``config``'s prompts."""
    for model, name in zip((dense, pruned), names, strict=True):
        most = getattr(model, "max_position_embeddings", None)
        if most is not None and config.prompt + config.tokens > most:
            raise PrunekitError(
                f"A prompt of {config.prompt} and {config.tokens} more tokens are beyond the {most} positions {name} "
                "was made for; choose a smaller --prompt or --tokens."
            )
    if dense.vocab_size != pruned.vocab_size:
        raise PrunekitError(
            f"{names[0]} has a vocabulary of {dense.vocab_size:,} and {names[1]} of {pruned.vocab_size:,}, so they "
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


def ideal_decode_ratio(
    dense: ModelShape, pruned: ModelShape, config: BenchConfig, batch: int, bytes_per_element: int
) -> float:
    """Ratio of bytes that a decode step must read: the weights once, each sequence's KV cache at its mean length."""
    context = batch * (config.prompt + config.tokens // 2)
    return pruned.decode_bytes(bytes_per_element, context) / dense.decode_bytes(bytes_per_element, context)


def _batch(
    models: tuple[Any, Any],
    shapes: tuple[ModelShape, ModelShape],
    size: int,
    config: BenchConfig,
    element: int,
    clock: Clock,
) -> BatchResult:
    ids = prompt_ids(size, config.prompt, models[0].config.vocab_size, config.seed)
    on_device = [ids.to(next(model.parameters()).device) for model in models]
    prefill: tuple[list[float], list[float]] = ([], [])
    decode: tuple[list[float], list[float]] = ([], [])
    turns = order(config.repeats)
    with progress(f"Timing at batch size {size}", 2 * config.warmup + len(turns)) as advance:
        for index in order(config.warmup):
            run_once(models[index], on_device[index], config.tokens)
            advance()
        for index in turns:
            first, each = run_once(models[index], on_device[index], config.tokens, clock)
            prefill[index].append(first)
            decode[index].append(each)
            advance()
    return BatchResult(
        size,
        compare(prefill[0], prefill[1], ideal_prefill_ratio(*shapes, config.prompt)),
        compare(decode[0], decode[1], ideal_decode_ratio(*shapes, config, size, element)),
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cuda_peak(model: Any, config: BenchConfig) -> int:
    """Bytes allocated at most while ``model`` runs once at the largest batch: its weights, cache and activations."""
    import torch

    device = next(model.parameters()).device
    ids = prompt_ids(max(config.batch), config.prompt, model.config.vocab_size, config.seed).to(device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_once(model, ids, config.tokens)
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(model)
