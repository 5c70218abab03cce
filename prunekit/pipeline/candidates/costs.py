"""What a candidate costs where it runs: bytes of weights and KV cache, users that fit, predicted latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunekit.errors import PrunekitError
from prunekit.pipeline.candidates.figure import Figure, exact, predicted, unknown
from prunekit.plan.latency_table import LatencyTable
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.profiling.compare import ideal_prefill_ratio

PHASES = {"prefill": "ttft_ratio", "decode": "tpot_ratio"}
CAME = {"ttft_ratio": (0.80, 1.20), "tpot_ratio": (0.62, 1.05)}
"""Which share of the ideal gain (1 - ratio) really came, at least and at most: five sizes of SmolLM2-135M in PyTorch on
a CPU, from the 20th to the 80th percentile of their runs. benchmarks/results/candidates_checked_cpu.json holds them; a
test compares the two."""
_RANGE = (
    "the interval is how far five sizes of SmolLM2-135M were from their ideal in PyTorch on a CPU; other machines and "
    "runtimes may lie outside"
)


@dataclass(frozen=True)
class Place:
    """Where it will run: ``context`` tokens of each user, prompt and answer, ``memory`` bytes (None: not said), and
    latency tables by their phase."""

    context: int
    memory: int | None
    tables: Mapping[str, LatencyTable]


def read_tables(tables: Sequence[LatencyTable], dense: ModelShape) -> dict[str, LatencyTable]:
    """Latency tables by phase. Raises PrunekitError where one is of another model, or two are of one phase."""
    made: dict[str, LatencyTable] = {}
    for table in tables:
        table.check(dense)
        phase = str(table.conditions.get("phase"))
        if phase in made:
            raise PrunekitError(f"Two latency tables are of {phase}; give one of prefill and one of decode at most.")
        made[phase] = table
    return made


def memory_figures(weights: Figure, kv_bytes: int, place: Place, kv_how: str) -> dict[str, Figure]:
    """Bytes of KV cache a token, of weights and one user's cache together, and how many users fit."""
    kv = exact(kv_bytes, f"keys and values of all layers, {kv_how}")
    if weights.value is None:
        why = f"the size of the weights is not known: {weights.how}"
        return {"kv_bytes_per_token": kv, "memory_bytes": unknown(why), "users": unknown(why)}
    held, cache = int(weights.value), kv_bytes * place.context
    how = (
        f"file size plus the KV cache of one user with {place.context:,} tokens; activations and the runtime's own "
        "memory are not counted"
    )
    total = exact(held + cache, how)
    return {"kv_bytes_per_token": kv, "memory_bytes": total, "users": _users(held, cache, place)}


def _users(weights: int, cache: int, place: Place) -> Figure:
    if place.memory is None:
        return unknown("say how much memory there is, with --device-memory 8GB")
    how = (
        f"(memory of {place.memory:,} bytes − file size) / KV cache of {place.context:,} tokens, rounded down; "
        "activations and the runtime's own memory are not counted"
    )
    if not cache:
        return unknown("the model has no KV cache")
    return exact(max(0, (place.memory - weights) // cache), how)


@dataclass(frozen=True)
class Read:
    """What a decode step reads of the weights, in bytes, and whether weights are rounded below 16 bits."""

    weight_bytes: int | None
    rounded: bool = False


def latency_figures(
    dense: ModelShape,
    layers: Sequence[LayerShape],
    shape: ModelShape,
    read: Read,
    of_dense: Read,
    kv: int,
    dense_kv: int,
    place: Place,
) -> dict[str, Figure]:
    """Predicted time to the first token and of each further one, as shares of the unquantised dense model's: by a
    latency table of the phase where there is one, else what operations and bytes alone would give. ``layers`` are by
    the layers of the dense model, ``shape`` is the pruned model's."""
    made: dict[str, Figure] = {}
    for phase, name in PHASES.items():
        table = place.tables.get(phase)
        if table is not None and not read.rounded:
            cost, said = table.cost(), table.conditions
            try:
                ratio = cost.of(layers) / cost.of(dense.layers)
            except PrunekitError as error:
                # Such as heads that the table has no time of.
                made[name] = unknown(str(error).rstrip("."))
                continue
            how = (
                f"latency table of {phase}: {said.get('batch')} x {said.get('length')} tokens, {said.get('dtype')}, in "
                "PyTorch; other runtimes gain otherwise"
            )
            made[name] = predicted(ratio, how)
        else:
            made[name] = _ideal(phase, dense, shape, read, of_dense, kv, dense_kv, place.context)
    return made


def _ideal(
    phase: str, dense: ModelShape, shape: ModelShape, read: Read, of_dense: Read, kv: int, dense_kv: int, context: int
) -> Figure:
    if phase == "prefill":
        if read.rounded:
            return unknown(
                "how fast rounded weights are multiplied depends on the runtime: measure it with prunekit bench"
            )
        how = (
            f"ideal: operations of a prompt of {context:,} tokens alone; give a --latency-table, or measure with "
            "prunekit bench"
        )
        ratio = ideal_prefill_ratio(dense, shape, context)
        return predicted(ratio, f"{how}; {_RANGE}", CAME[PHASES[phase]])
    if read.weight_bytes is None or of_dense.weight_bytes is None:
        return unknown("the bytes that a step reads are not known")
    ratio = (read.weight_bytes + kv * context) / (of_dense.weight_bytes + dense_kv * context)
    how = (
        f"ideal: bytes read at {context:,} tokens of context alone; give a --latency-table, or measure with prunekit "
        "bench"
    )
    if read.rounded:
        return predicted(ratio, how)
    return predicted(ratio, f"{how}; {_RANGE}", CAME[PHASES[phase]])
