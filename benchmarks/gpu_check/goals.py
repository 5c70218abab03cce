"""The goals of prunekit.kernels, judged from what one run measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

Record = dict[str, Any]
Found = tuple[float, str]

LARGE_LAYER_BYTES = 30e6
SMALL_MODEL, LARGE_MODEL = "llama-3.2-1b", "llama-3.1-8b"


@dataclass(frozen=True)
class Goal:
    """``value`` is the worst that was measured, ``where`` says at what; None where nothing was. ``at_most`` tells
    ceilings from floors."""

    goal: str
    target: float
    at_most: bool
    value: float | None
    where: str
    rehearsal: bool = False

    @property
    def met(self) -> bool | None:
        """None where nothing was measured; a rehearsal's times are none."""
        if self.value is None or self.rehearsal:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def to_dict(self) -> Record:
        """JSON values only."""
        return {**asdict(self), "met": self.met}


def evaluate(parts: dict[str, Record]) -> list[Goal]:
    """All goals. ``parts`` are the files of a run by part; missing ones leave goals unmeasured."""
    ops = _good(parts.get("ops"))
    models = _good(parts.get("models"))
    goals = [*_alignment(ops), *_decode_mlp(ops), *_whole_models(models), _speedup(models)]
    is_rehearsal = any(part["rehearsal"] for part in parts.values())
    return [replace(goal, rehearsal=is_rehearsal) for goal in goals]


def wrong(record: Record) -> bool:
    """True where ours computed something else than PyTorch did in the same dtype, or than itself does where launches
    wait for each other: its time then means nothing."""
    return record.get("agrees") is False or record.get("overlap_same_tokens") is False


def _good(part: Record | None) -> list[Record]:
    return [record for record in (part or {}).get("records", []) if "error" not in record and not wrong(record)]


def _goal(text: str, target: float, found: Iterable[Found], *, at_most: bool = False) -> Goal:
    """The worst of ``found``."""
    values = list(found)
    if not values:
        return Goal(text, target, at_most, None, "not measured")
    worst = (max if at_most else min)(values, key=lambda pair: pair[0])
    return Goal(text, target, at_most, worst[0], f"{worst[1]} (worst of {len(values)})")


def _alignment(ops: list[Record]) -> Iterator[Goal]:
    # Norms are over hidden_size, which is never pruned: nothing of theirs is irregular.
    names = dict.fromkeys(record["op"] for record in ops if record["prunable"])
    for name in names or ["every op"]:
        found = [
            (record["irregular_over_aligned"]["median"], record["id"])
            for record in ops
            if record["op"] == name and record["irregular_over_aligned"]
        ]
        yield _goal(f"{name}: irregular/aligned time", 1.03, found, at_most=True)


def _decode_mlp(ops: list[Record]) -> Iterator[Goal]:
    large = [
        record
        for record in ops
        if record["case"] == "mlp_decode"
        and record["rows"] == 1
        and min(record["layer_bytes"]) >= LARGE_LAYER_BYTES
        and "median_us" in record["arms"].get("ours", {})
    ]
    yield _goal(
        "decode MLP, batch 1, layers of 30 MB and more: share of copy bandwidth",
        0.85,
        ((record["arms"]["ours"]["share_of_copy"], record["id"]) for record in large),
    )
    yield _goal(
        "decode MLP, batch 1, layers of 30 MB and more: speed-up over the faster cuBLAS arm",
        1.15,
        ((gain, record["id"]) for record in large if (gain := over_cublas(record)) is not None),
    )


def over_cublas(record: Record) -> float | None:
    """How many times as fast as the better of the two cuBLAS arms ours is."""
    arms = record["arms"]
    times = [
        arms[name]["median_us"] for name in ("irregular_cublas", "padded_cublas") if "median_us" in arms.get(name, {})
    ]
    ours = arms.get("ours", {}).get("median_us")
    return min(times) / ours if times and ours else None


def _steps(models: list[Record], name: str) -> list[Record]:
    """Decode at batch 1 where ours was measured."""
    return [
        record
        for record in models
        if record["model"] == name and record["batch"] == 1 and "tpot" in record["arms"].get("ours", {})
    ]


def over_compiled(record: Record) -> float | None:
    """How many times as fast as compiled transformers ours decodes."""
    compiled, ours = (record["arms"].get(name, {}).get("tpot") for name in ("compiled", "ours"))
    return compiled["median_us"] / ours["median_us"] if compiled and ours else None


def _whole_models(models: list[Record]) -> Iterator[Goal]:
    kinds: tuple[tuple[str, Callable[[Record], bool]], ...] = (
        ("dense", lambda record: record["pruned_percent"] == 0),
        ("pruned", lambda record: record["pruned_percent"] > 0),
    )
    for name, target in ((SMALL_MODEL, 0.75), (LARGE_MODEL, 0.85)):
        for kind, wanted in kinds:
            shares = [
                (record["arms"]["ours"]["share_of_copy"], record["id"])
                for record in _steps(models, name)
                if wanted(record)
            ]
            yield _goal(f"{name}, {kind}: batch-1 decode, share of the roofline", target, shares)
    for kind, wanted in kinds:
        gains = [
            (gain, record["id"])
            for record in _steps(models, SMALL_MODEL)
            if wanted(record) and (gain := over_compiled(record)) is not None
        ]
        yield _goal(f"{SMALL_MODEL}, {kind}: batch-1 decode, speed-up over transformers + torch.compile", 1.3, gains)


def _speedup(models: list[Record]) -> Goal:
    """Pruned/dense speed-up over the ratio of the bytes that a step must read."""
    steps = _steps(models, LARGE_MODEL)
    dense = {record["prompt"]: record for record in steps if record["pruned_percent"] == 0}
    found = []
    for record in steps:
        whole = dense.get(record["prompt"])
        if record["pruned_percent"] and whole:
            gain = whole["arms"]["ours"]["tpot"]["median_us"] / record["arms"]["ours"]["tpot"]["median_us"]
            ideal = whole["decode_bytes"] / record["decode_bytes"]
            found.append((gain / ideal, record["id"]))
    return _goal(f"{LARGE_MODEL}: batch-1 decode, pruned/dense speed-up over the ideal byte ratio", 0.95, found)
