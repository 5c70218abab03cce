"""The goals, judged from what one run measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

Record = dict[str, Any]
Found = tuple[float, str]

SMALL_MODEL, LARGE_MODEL = "llama-3.2-1b", "llama-3.1-8b"
LONG_PROMPT = 2048


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


def evaluate(blocks: dict[str, Record]) -> list[Goal]:
    """All goals. ``blocks`` are the files of a run by block; missing ones leave goals unmeasured."""
    models = _good(blocks.get("headline"))
    goals = [
        *_roofline(models),
        *_over_compiled(models),
        _speedup(models),
        _first_token(models),
        _irregular(models),
        _ratios("exports", "each export", _good(blocks.get("exports"))),
        _ratios("server", "vLLM", _good(blocks.get("server"))),
    ]
    is_rehearsal = any(block["rehearsal"] for block in blocks.values())
    return [replace(goal, rehearsal=is_rehearsal) for goal in goals]


def wrong(record: Record) -> bool:
    """True where ours computed something else than PyTorch did in the same dtype, or than itself does where launches
    wait for each other: its time then means nothing."""
    return record.get("agrees") is False or record.get("overlap_same_tokens") is False


def tpot(record: Record, arm: str) -> float | None:
    """Microseconds a token, None where that was not measured."""
    found = record.get("arms", {}).get(arm, {}).get("tpot")
    return found["median_us"] if found else None


def faster(record: Record, other: str, figure: str = "tpot") -> float | None:
    """How many times as fast as the arm ``other`` ours is, in one record: measured in turns."""
    theirs, ours = (record.get("arms", {}).get(name, {}).get(figure) for name in (other, "ours"))
    return theirs["median_us"] / ours["median_us"] if theirs and ours else None


def over_dense(record: Record, records: Iterable[Record]) -> tuple[float, float] | None:
    """Of a pruned model's record: how many times as fast as the dense one it decodes, and how many times fewer bytes it
    reads for that; None where either was not measured."""
    mine = tpot(record, "ours")
    if record.get("variant") in (None, "dense") or mine is None or "ours_waiting" not in record["arms"]:
        return None
    dense = _same(record, records, "dense")
    theirs = tpot(dense, "ours") if dense else None
    return (theirs / mine, dense["decode_bytes"] / record["decode_bytes"]) if dense and theirs else None


def _same(record: Record, records: Iterable[Record], variant: str) -> Record | None:
    """Another variant of the same model at the same batch and prompt, in the record of our own arms."""
    names = ("model", "batch", "prompt")
    return next(
        (
            each
            for each in records
            if each["variant"] == variant
            and "ours_waiting" in each.get("arms", {})
            and all(each[name] == record[name] for name in names)
        ),
        None,
    )


def _good(block: Record | None) -> list[Record]:
    return [record for record in (block or {}).get("records", []) if "error" not in record and not wrong(record)]


def _goal(text: str, target: float, found: Iterable[Found], *, at_most: bool = False) -> Goal:
    """The worst of ``found``."""
    values = list(found)
    if not values:
        return Goal(text, target, at_most, None, "not measured")
    worst = (max if at_most else min)(values, key=lambda pair: pair[0])
    return Goal(text, target, at_most, worst[0], f"{worst[1]} (worst of {len(values)})")


def _roofline(models: list[Record]) -> Iterator[Goal]:
    for name, dense, pruned in ((SMALL_MODEL, 0.78, 0.75), (LARGE_MODEL, 0.88, 0.85)):
        for kind, target in (("dense", dense), ("irregular", pruned)):
            found = [
                (record["arms"]["ours"]["share_of_copy"], record["id"])
                for record in models
                if (record["model"], record["variant"], record["batch"]) == (name, kind, 1)
                and "ours_waiting" in record["arms"]
                and tpot(record, "ours")
            ]
            yield _goal(f"{name}, {kind}: batch-1 decode, share of the roofline", target, found)


def _over_compiled(models: list[Record]) -> Iterator[Goal]:
    for batch, target in ((1, 1.9), (8, 1.5), (64, 1.2)):
        found = [
            (gain, record["id"])
            for record in models
            if (record["model"], record["batch"]) == (SMALL_MODEL, batch)
            and (gain := faster(record, "compiled")) is not None
        ]
        yield _goal(f"{SMALL_MODEL}: batch-{batch} decode, speed-up over transformers + torch.compile", target, found)


def _speedup(models: list[Record]) -> Goal:
    found = [
        (gain / ideal, record["id"])
        for record in models
        if (record["model"], record["batch"]) == (LARGE_MODEL, 1)
        for gain, ideal in [over_dense(record, models) or (None, None)]
        if gain is not None and ideal is not None
    ]
    return _goal(f"{LARGE_MODEL}: batch-1 decode, pruned/dense speed-up over the ideal byte ratio", 0.95, found)


def _first_token(models: list[Record]) -> Goal:
    found = [
        (gain, f"{record['id']}")
        for record in models
        if record["prompt"] == LONG_PROMPT
        for other in ("eager", "compiled")
        if (gain := faster(record, other, "ttft")) is not None
    ]
    return _goal(f"first token of a prompt of {LONG_PROMPT:,}: speed-up over transformers", 1.0, found)


def _irregular(models: list[Record]) -> Goal:
    """For the same bytes: rounding changes those too."""
    found = []
    for record in models:
        if record["variant"] != "irregular" or "ours_waiting" not in record["arms"]:
            continue
        other = _same(record, models, "rounded")
        mine, theirs = tpot(record, "ours"), tpot(other, "ours") if other else None
        if other and mine and theirs:
            found.append((mine / theirs * other["decode_bytes"] / record["decode_bytes"], record["id"]))
    return _goal("whole model, irregular/rounded time a byte", 1.03, found, at_most=True)


def _ratios(block: str, name: str, records: list[Record]) -> Goal:
    """Records of ``block`` hold the speed-up of pruned over dense and what the bytes would give."""
    found = [(record["speedup"] / record["ideal_speedup"], record["id"]) for record in records if record.get("speedup")]
    return _goal(f"{name}: pruned/dense decode speed-up over the ideal", 0.85, found)
