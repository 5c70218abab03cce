"""The result of an acceptance test, as an object and as the file accept.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.evaluation.acceptance.asked.answers import Answer
from prunekit.evaluation.acceptance.compared import Compared, Outcome, length_of
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.verdict import Verdict

FORMAT = "prunekit-accept"
NAME = "accept.json"
MOST_WORST = 50


@dataclass(frozen=True)
class Worst:
    """A record that the baseline answered right and the smaller model did not. ``texts`` are the prompt, the reference
    and both answers, None where they are not to be shown."""

    id: str
    group: str | None
    weight: float
    why: str
    length: int
    baseline_length: int
    texts: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "texts": None if self.texts is None else dict(self.texts)}


@dataclass(frozen=True)
class Acceptance:
    """What was found: the ``verdict``, ``everything`` over all records and each of ``groups``, the ``worst`` records,
    and the ``policy`` that it was judged by (``given``: the user's own, not the default one).

    ``smaller`` and ``baseline`` tell of the models, ``records`` of the file, ``run`` of this run: how many answers were
    asked for and how many were kept, seconds, machine, versions.
    """

    verdict: Verdict
    everything: Compared
    groups: Mapping[str, Compared]
    worst: tuple[Worst, ...]
    policy: Policy
    given: bool
    smaller: Mapping[str, Any]
    baseline: Mapping[str, Any]
    records: Mapping[str, Any]
    run: Mapping[str, Any]
    path: Path | None = None

    @property
    def accepted(self) -> bool:
        """Whether the exit code is 0."""
        return self.verdict.exit_code == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what is in accept.json."""
        return {
            "format": FORMAT,
            "version": 1,
            "verdict": self.verdict.word,
            "exit_code": self.verdict.exit_code,
            "reasons": list(self.verdict.reasons),
            "conditions": [each.to_dict() for each in self.verdict.conditions],
            "all": self.everything.to_dict(),
            "groups": {name: each.to_dict() for name, each in self.groups.items()},
            "worst": [each.to_dict() for each in self.worst],
            "policy": {"given": self.given, **self.policy.to_dict()},
            "smaller": dict(self.smaller),
            "baseline": dict(self.baseline),
            "records": dict(self.records),
            "run": dict(self.run),
        }

    def to_json(self) -> str:
        """The text of accept.json."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def worst_of(outcomes: Sequence[Outcome], unit: str, *, show_texts: bool) -> tuple[Worst, ...]:
    """The records that went from right to wrong: the heaviest first, of equal ones those whose answers grew most."""

    def grown(each: Outcome) -> float:
        return length_of(each.answer, unit) / max(1, length_of(each.baseline, unit))

    flipped = sorted(
        (each for each in outcomes if each.worse), key=lambda each: (-each.record.weight, -grown(each), each.record.id)
    )
    return tuple(
        Worst(
            each.record.id,
            each.record.group,
            each.record.weight,
            _why(each, show_texts),
            length_of(each.answer, unit),
            length_of(each.baseline, unit),
            _texts(each) if show_texts else None,
        )
        for each in flipped[:MOST_WORST]
    )


def _why(outcome: Outcome, show_texts: bool) -> str:
    if outcome.answer.error is not None:
        # A server may repeat the prompt, or name itself, in what it says of an error.
        detail = outcome.answer.detail if show_texts else ""
        return f"no answer ({outcome.answer.error}{f': {detail}' if detail else ''})"
    if outcome.right is None:
        return "its check did not come to an end"
    if outcome.baseline_right is None:
        return "wrong; the baseline failed, which counts as right"
    return "wrong, and cut off" if outcome.answer.truncated else "wrong"


def _texts(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    references = [str(each) for each in record.check.references]
    asked = record.prompt if record.prompt is not None else [dict(each) for each in record.messages]
    return {
        "asked": asked,
        "check": record.check.kind,
        "references": references or record.check.options.get("pattern") or record.check.options.get("schema"),
        "answer": _text(outcome.answer),
        "baseline": _text(outcome.baseline),
    }


def _text(answer: Answer) -> str | None:
    return None if answer.error is not None else answer.text
