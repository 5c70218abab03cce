"""Times of several runs on one machine: where runs disagree on the same model, they stand in columns of their own."""

from __future__ import annotations

from dataclasses import replace

from prunekit.report.facts.agree import resolved
from prunekit.report.facts.claims import CONTRADICTORY, MEASURED, Claim
from prunekit.report.facts.rows import Grouped

_TIMES = ("ttft", "tpot")
# What changes with the state of the machine. Ratios are of runs in turns, which see the same machine.
_ABSOLUTE = (*_TIMES, "tokens_per_second", "requests_per_second")


def apart(grouped: Grouped) -> tuple[Grouped, list[str]]:
    """``grouped`` with the absolute times of runs that contradict each other told apart by their files, and a sentence
    for each set-up where that was needed."""
    setups: dict[str, str] = {}
    for row in grouped.rows:
        for metric in _TIMES:
            for setup in dict.fromkeys(each.setup for each in row.claims if each.metric == metric):
                same = [each for each in row.claims if each.metric == metric and each.setup == setup]
                figure = resolved(same)
                if figure.status == CONTRADICTORY and setup not in setups:
                    setups[setup] = (
                        f"{' and '.join(figure.files)} timed {row.title} under one set-up ({setup}) and found "
                        f"{figure.how}: the machine was not in the same state. Ratios, which are of runs in turns, "
                        "stand in one column. Times, rates and costs of these runs are not compared with each other."
                    )
    if not setups:
        return grouped, []
    rows = [replace(row, claims=tuple(_own(each, setups) for each in row.claims)) for row in grouped.rows]
    return replace(grouped, rows=tuple(rows)), list(setups.values())


def _own(claim: Claim, setups: dict[str, str]) -> Claim:
    if claim.setup not in setups or claim.metric not in _ABSOLUTE or claim.figure.status != MEASURED:
        return claim
    return replace(claim, setup=f"{claim.setup}, run of {', '.join(claim.figure.files)}")
