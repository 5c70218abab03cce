"""Whether the smaller model is accepted, by the policy, in words that say why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunekit.evaluation.acceptance.compared import Compared, Figure
from prunekit.evaluation.acceptance.policy import ACCEPT, Limits, Policy
from prunekit.utils.endpoints.answer import ANOTHER_MODEL
from prunekit.utils.names import printable

ACCEPTED, REFUSED, TOO_FEW, NO_VERDICT = "accepted", "refused", "too few to tell", "no verdict"
REFUSED_CODE = 3
"""The exit code where the smaller model is not accepted."""
_KINDS = 4


@dataclass(frozen=True)
class Condition:
    """One thing that the policy asks: of a ``group`` (None: of all records), whether it ``holds`` (None: there are too
    few records to tell), and the ``sentence`` that says so."""

    name: str
    group: str | None
    value: float | None
    limit: float
    holds: bool | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """``word`` is accepted, refused, too few to tell or no verdict; ``reasons`` are sentences, those that decide
    alone."""

    word: str
    exit_code: int
    reasons: tuple[str, ...]
    conditions: tuple[Condition, ...]


def decide(
    policy: Policy, everything: Compared, groups: Mapping[str, Compared], others: tuple[Condition, ...] = ()
) -> Verdict:
    """The verdict on all records and on the groups that the policy names. ``others`` are conditions on other files.

    All conditions must hold at once, so that the error of accepting wrongly stays that of each test (intersection-union
    test): nothing is corrected for their number.
    """
    failures = [*_failures(policy, everything)]
    conditions = [*failures, *_conditions(policy.limits, None, everything)]
    for name, limits in policy.groups.items():
        conditions += _conditions(limits, name, groups[name])
    conditions += others
    broken = [each for each in conditions if each.holds is False]
    open_ = [each for each in conditions if each.holds is None]
    if any(each.holds is False for each in failures):
        word, decisive = NO_VERDICT, [each for each in failures if each.holds is False]
    elif broken:
        word, decisive = REFUSED, [*broken, *open_]
    elif open_:
        word, decisive = TOO_FEW, open_
    else:
        word, decisive = ACCEPTED, conditions[len(failures) :]
    passes = word == ACCEPTED or (word == TOO_FEW and policy.too_few == ACCEPT)
    reasons = tuple(each.sentence for each in decisive)
    return Verdict(word, 0 if passes else REFUSED_CODE, reasons, tuple(conditions))


def _failures(policy: Policy, seen: Compared) -> Iterator[Condition]:
    sides = (
        ("The smaller model", seen.failed, seen.why_failed),
        ("The baseline", seen.baseline_failed, seen.baseline_why_failed),
    )
    for who, failed, kinds in sides:
        share = failed / seen.records
        told = "".join(f"; {name}: {count}" for name, count in [*kinds.items()][:_KINDS])
        advice = " Ask the server of the model itself, not a gateway with a fallback." if ANOTHER_MODEL in kinds else ""
        yield Condition(
            "max_failed",
            None,
            share,
            policy.max_failed,
            share <= policy.max_failed,
            f"{who} has no answer, or none that could be judged, for {failed} of {seen.records} records "
            f"({share:.1%}{told}); the policy allows {policy.max_failed:.1%}.{advice}",
        )


def _conditions(limits: Limits, group: str | None, seen: Compared) -> Iterator[Condition]:
    where = "" if group is None else f"In the group {printable(group)}: "
    if limits.margin is not None:
        yield _margin(limits.margin, group, where, seen)
    figures: tuple[tuple[str, Figure, str, str], ...] = (
        ("max_error_rate", seen.error_rate, "the error rate is", ".1%"),
        ("max_flips", seen.flips, "the share of answers that went from right to wrong or back is", ".1%"),
        ("max_length_ratio", seen.length_ratio, "the mean length of answers against the baseline's is", ".2f"),
        ("max_truncated", seen.truncated, "the share of answers that were cut off is", ".1%"),
    )
    for name, figure, words, form in figures:
        limit = getattr(limits, name)
        if limit is None:
            continue
        value = figure.value
        told = f"{value:{form}}" if value is not None else f"not measured ({figure.how})"
        sentence = f"{where}{words} {told}; the policy allows {limit:{form}}."
        yield Condition(name, group, value, limit, value is not None and value <= limit, _capital(sentence))


def _margin(margin: float, group: str | None, where: str, seen: Compared) -> Condition:
    """Shown, or the rise that was measured is beyond the margin, or not shown with or without enough records."""
    test, gap = seen.noninferiority, seen.difference
    assert test is not None and gap.value is not None and gap.low is not None and gap.high is not None
    rise = f"the error rate rises by {100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    allowed = f"a rise below {100 * margin:g} points"
    if test.shown:
        holds, rest = True, f"; {allowed} is shown (p = {test.p:.2g})"
    elif gap.value >= margin:
        holds, rest = False, f", and the policy asks for {allowed}"
    elif test.enough:
        holds, rest = False, f"; {allowed} is not shown (p = {test.p:.2g}), though records are enough"
    else:
        holds = None
        rest = (
            f"; {allowed} is not shown (p = {test.p:.2g}). Too few: there are {seen.records:,} records, and the "
            f"test needs about {test.needed:,}"
        )
    return Condition("margin", group, gap.value, margin, holds, _capital(f"{where}{rise}{rest}."))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
