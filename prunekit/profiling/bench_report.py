"""What `prunekit bench` is asked and what it says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.profiling.energy import Energy
from prunekit.utils.measuring.load import Load
from prunekit.utils.timing import Comparison, check_counts


@dataclass(frozen=True)
class BenchConfig:
    """Prompts of ``prompt`` tokens, then ``tokens`` decode steps, for each batch size; at least ``repeats`` measured
    runs of each model after ``warmup`` that are thrown away, and more until their range is narrow or ``max_minutes``
    are up, for all batch sizes together (:class:`~prunekit.profiling.turns.Until`; 0: ``repeats`` runs). ``threads`` is
    for the CPU (default: as torch chose)."""

    batch: tuple[int, ...] = (1,)
    prompt: int = 128
    tokens: int = 32
    repeats: int = 10
    warmup: int = 2
    threads: int | None = None
    seed: int = 0
    max_minutes: float = 2.0
    energy: bool = False
    assume_watts: float | None = None

    def __post_init__(self) -> None:
        if not self.batch:
            raise PrunekitError("Name at least one batch size.")
        if not 0 <= self.max_minutes <= 24 * 60:
            raise PrunekitError(f"The minutes of a measurement must be from 0 to {24 * 60}, got {self.max_minutes!r}.")
        if self.assume_watts is not None and not 0 < self.assume_watts <= 1e6:
            raise PrunekitError(f"The watts that are assumed must be above 0 to a million, got {self.assume_watts!r}.")
        least = {"prompt": 1, "tokens": 1, "repeats": 2, "warmup": 0, "seed": 0}
        checks = [(name, getattr(self, name), bound) for name, bound in least.items()]
        checks += [("batch", size, 1) for size in self.batch]
        check_counts(checks, self.threads)


@dataclass(frozen=True)
class BatchResult:
    """Time to first token (``ttft``, one prefill) and time per output token (``tpot``) at one batch size; why no more
    turns were taken (:data:`~prunekit.profiling.turns.Stopped`), and what else the machine did meanwhile."""

    batch: int
    ttft: Comparison
    tpot: Comparison
    stopped: str = "fixed"
    load: Load | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a model costs to hold. ``decode_bytes`` are the weight bytes that one decode step reads; ``peak_bytes`` is
    None where it was not measured. ``fingerprint`` is of its weights, of an export those of its checkpoint;
    ``plan_sha256`` of the plan that they were made by. None where nobody said."""

    name: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    decode_bytes: int
    file_bytes: int | None = None
    peak_bytes: int | None = None
    fingerprint: str | None = None
    plan_sha256: str | None = None


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
    load_before: Load | None = None
    energy: Energy | None = None

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against any of the times."""
        return all(each.believed for result in self.results for each in (result.ttft, result.tpot))

    def to_dict(self) -> dict[str, Any]:
        """JSON values only. Times are in seconds; ratios are pruned/dense."""
        data = asdict(self)
        data["believed"] = self.believed
        data["energy"] = None if self.energy is None else self.energy.to_dict()
        for result, made in zip(self.results, data["results"], strict=True):
            for name in ("ttft", "tpot"):
                made[name] = getattr(result, name).to_dict()
        for name in ("parameters", "weight_bytes", "kv_bytes_per_token", "decode_bytes", "file_bytes", "peak_bytes"):
            dense, pruned = getattr(self.dense, name), getattr(self.pruned, name)
            data.setdefault("ratios", {})[name] = pruned / dense if dense and pruned is not None else None
        return data
