"""Two models' answers to the same records, right or wrong: rates, flips, lengths, and the test of non-inferiority."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prunekit.evaluation.acceptance import statistics
from prunekit.evaluation.acceptance.asked.answers import Answer
from prunekit.evaluation.acceptance.records import Record
from prunekit.evaluation.acceptance.statistics import Interval

NOT_JUDGED = "the check did not end"


@dataclass(frozen=True)
class Figure:
    """``value`` with its interval from ``low`` to ``high`` where it has one; ``status`` is measured or not measured,
    and ``how`` says in a short sentence how it came, or why there is none."""

    value: float | None
    low: float | None
    high: float | None
    status: str
    how: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what no float holds is null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Outcome:
    """What both models made of a record. ``right`` and ``baseline_right`` are None where there is no answer, or its
    check did not come to an end: that counts as a failure."""

    record: Record
    answer: Answer
    baseline: Answer
    right: bool | None
    baseline_right: bool | None

    @property
    def worse(self) -> bool:
        """Right to wrong. A failure of the baseline never speaks for the smaller model: it counts as right here."""
        return self.right is not True and self.baseline_right is not False

    @property
    def better(self) -> bool:
        """Wrong to right."""
        return self.right is True and self.baseline_right is False


@dataclass(frozen=True)
class Noninferiority:
    """The test that the error rate rises by less than ``margin``: its one-sided ``p``, ``how`` it was computed, and how
    many records would be ``needed`` for the policy's power. ``enough`` tells whether there are so many."""

    margin: float
    alpha: float
    power: float
    p: float
    how: str
    needed: int
    enough: bool

    @property
    def shown(self) -> bool:
        return self.p <= self.alpha


@dataclass(frozen=True)
class Compared:
    """Both models on the same ``records``. ``worse`` went from right to wrong, ``better`` back; ``mcnemar_p`` is the
    exact two-sided one. Rates are weighted where records are; ``effective`` is the number of records that the weights
    leave. Lengths are in ``unit``. ``why_failed`` counts failures by their kinds."""

    records: int
    effective: float
    error_rate: Figure
    baseline_error_rate: Figure
    difference: Figure
    worse: int
    better: int
    flips: Figure
    mcnemar_p: float
    length_ratio: Figure
    unit: str
    truncated: Figure
    baseline_truncated: Figure
    failed: int
    baseline_failed: int
    noninferiority: Noninferiority | None
    why_failed: Mapping[str, int] = field(default_factory=dict)
    baseline_why_failed: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        made = {name: each.to_dict() if isinstance(each, Figure) else each for name, each in data.items()}
        test = self.noninferiority
        made["noninferiority"] = None if test is None else {**asdict(test), "shown": test.shown}
        return made


def compare(outcomes: Sequence[Outcome], *, margin: float | None, alpha: float, power: float, unit: str) -> Compared:
    """Both models on ``outcomes`` (at least one), with a test of non-inferiority where a ``margin`` is given.

    Error rates have exact intervals of 95 % (Clopper and Pearson; of the effective number of records where weights
    differ), their difference Tango's score interval of 1 - 2 · ``alpha``.
    """
    weights = [each.record.weight for each in outcomes]
    total, effective = math.fsum(weights), statistics.effective_count(weights)
    equal = len(set(weights)) == 1

    def part(wanted: Callable[[Outcome], bool]) -> float:
        return min(1.0, math.fsum(w for w, each in zip(weights, outcomes, strict=True) if wanted(each)) / total)

    def rate(wanted: Callable[[Outcome], bool], how: str) -> Figure:
        return _measured(statistics.share(part(wanted), effective), f"{how}{_EXACT if equal else _EFFECTIVE}")

    worse, better = part(lambda each: each.worse), part(lambda each: each.better)
    pairs = worse * effective, better * effective, effective
    if equal:
        pairs = float(_count(outcomes, "worse")), float(_count(outcomes, "better")), float(len(outcomes))
    gap = statistics.difference_interval(*pairs, alpha)
    answered = [each for each in outcomes if each.answer.error is None and each.baseline.error is None]
    return Compared(
        records=len(outcomes),
        effective=effective,
        error_rate=rate(lambda each: each.right is not True, "wrong answers and failures, as a share of records"),
        baseline_error_rate=rate(lambda each: each.baseline_right is not True, "the same of the baseline"),
        difference=_measured(
            gap,
            f"rise of the error rate, paired; Tango's score interval of {1 - 2 * alpha:.0%}, failures of the "
            "baseline taken as right",
        ),
        worse=_count(outcomes, "worse"),
        better=_count(outcomes, "better"),
        flips=rate(lambda each: each.worse or each.better, "answers that went from right to wrong or back"),
        mcnemar_p=statistics.mcnemar(_count(outcomes, "worse"), _count(outcomes, "better")),
        length_ratio=_length_ratio(answered, unit),
        unit=unit,
        truncated=rate(lambda each: each.answer.truncated, "answers cut off at the limit of tokens"),
        baseline_truncated=rate(lambda each: each.baseline.truncated, "the same of the baseline"),
        failed=sum(each.right is None for each in outcomes),
        baseline_failed=sum(each.baseline_right is None for each in outcomes),
        noninferiority=None if margin is None else _test(pairs, len(outcomes), margin, alpha, power),
        why_failed=_kinds((each.answer, each.right) for each in outcomes),
        baseline_why_failed=_kinds((each.baseline, each.baseline_right) for each in outcomes),
    )


def _kinds(judged: Iterable[tuple[Answer, bool | None]]) -> dict[str, int]:
    """Failures by why there is no answer, or no judgement of it; the most frequent first."""
    return dict(Counter(answer.error or NOT_JUDGED for answer, right in judged if right is None).most_common())


_EXACT = "; exact interval of 95 % (Clopper and Pearson)"
_EFFECTIVE = ", weighted; interval of 95 % (Clopper and Pearson) of the effective number of records"


def _measured(interval: Interval, how: str) -> Figure:
    return Figure(interval.value, interval.low, interval.high, "measured", how)


def _count(outcomes: Sequence[Outcome], name: str) -> int:
    return sum(getattr(each, name) for each in outcomes)


def length_of(answer: Answer, unit: str) -> int:
    """The length of an answer in tokens or characters."""
    return answer.tokens or 0 if unit == "tokens" else len(answer.text)


def _length_ratio(answered: Sequence[Outcome], unit: str) -> Figure:
    made, wanted = ([float(length_of(each, unit)) for each in side] for side in _sides(answered))
    if not sum(wanted):
        return Figure(None, None, None, "not measured", "the baseline wrote nothing")
    found = statistics.ratio(made, wanted, [each.record.weight for each in answered])
    return _measured(found, f"mean length of answers in {unit}, smaller / baseline; delta method, 95 %")


def _sides(answered: Sequence[Outcome]) -> tuple[list[Answer], list[Answer]]:
    return [each.answer for each in answered], [each.baseline for each in answered]


def _test(pairs: tuple[float, float, float], records: int, margin: float, alpha: float, power: float) -> Noninferiority:
    worse, better, count = pairs
    p, how = statistics.noninferiority(worse, better, count, margin)
    needed = statistics.needed((worse + better) / count, margin, alpha, power)
    # Weights that differ make each record worth less.
    needed = math.ceil(needed * records / count)
    return Noninferiority(margin, alpha, power, p, how, needed, records >= needed)
