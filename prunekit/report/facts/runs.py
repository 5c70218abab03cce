"""Times of several runs on one machine: where runs disagree on the same model, they stand in columns of their own."""

from __future__ import annotations

from dataclasses import replace

from prunekit.report.facts.agree import resolved
from prunekit.report.facts.claims import CONTRADICTORY, MEASURED, Claim
from prunekit.report.facts.rows import Grouped

_Run = tuple[str, str]
_TIMES = ("ttft", "tpot")
# What changes with the state of the machine. Ratios are of runs in turns, which see the same machine.
_ABSOLUTE = (*_TIMES, "tokens_per_second", "requests_per_second")


def apart(grouped: Grouped) -> tuple[Grouped, list[str]]:
    """``grouped`` with the absolute times of runs that contradict each other told apart by their files, and a sentence
    for each set-up where that was needed."""
    setups: dict[_Run, str] = {}
    for row in grouped.rows:
        for metric in _TIMES:
            for run in dict.fromkeys(_run(each) for each in row.claims if each.metric == metric):
                figure = resolved([each for each in row.claims if each.metric == metric and _run(each) == run])
                if figure.status == CONTRADICTORY and run not in setups:
                    under = ", ".join(filter(None, run))
                    setups[run] = (
                        f"{' and '.join(figure.files)} timed {row.title} under one set-up ({under}) and "
                        f"found {figure.how}: the machine was not in the same state. Ratios, which are of runs in "
                        "turns, stand in one column. Times, rates and costs of these runs are not compared."
                    )
    if not setups:
        return grouped, []
    rows = [replace(row, claims=tuple(_own(each, setups) for each in row.claims)) for row in grouped.rows]
    return replace(grouped, rows=tuple(rows)), list(setups.values())


def _run(claim: Claim) -> _Run:
    return claim.setup, claim.detail


def _own(claim: Claim, setups: dict[_Run, str]) -> Claim:
    if _run(claim) not in setups or claim.metric not in _ABSOLUTE or claim.figure.status != MEASURED:
        return claim
    return replace(claim, setup=f"{claim.setup}, run of {', '.join(claim.figure.files)}")
