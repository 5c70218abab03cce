"""Ratios of times that were measured one after the other, such as by bench.py of two exports on one device."""

from __future__ import annotations

from dataclasses import replace

from prunekit.report.facts.claims import ESTIMATED, EXACT, MEASURED, Claim, Figure
from prunekit.report.facts.rows import Grouped, Row

_TIMES = ("ttft", "tpot")


def set_beside(grouped: Grouped) -> Grouped:
    """``grouped`` with the time of each export over that of the dense model's, where both were timed in the same form
    under one set-up, and no run in turns gives their ratio. It is estimated: what changed on the machine between the
    two runs is in it."""
    found: dict[int, list[Claim]] = {}
    for metric in _TIMES:
        for place, row in enumerate(grouped.rows):
            for claim in _alone(row, metric):
                base = _dense(claim, row, grouped)
                if base is not None:
                    at, dense = base
                    found.setdefault(place, []).append(_ratio(claim, dense))
                    found.setdefault(at, []).append(_one(dense))
    rows = [
        replace(row, claims=(*row.claims, *dict.fromkeys(found.get(place, ()))))
        for place, row in enumerate(grouped.rows)
    ]
    return replace(grouped, rows=tuple(rows))


def _alone(row: Row, metric: str) -> list[Claim]:
    """Times that were measured of one smaller model alone."""
    if row.dense:
        return []
    paired = {each.setup for each in row.claims if each.metric == f"{metric}_ratio"}
    return [each for each in _timed(row, metric) if each.apart and each.setup not in paired]


def _timed(row: Row, metric: str) -> list[Claim]:
    return [each for each in row.claims if each.metric == metric and each.figure.status == MEASURED]


def _dense(claim: Claim, row: Row, grouped: Grouped) -> tuple[int, Claim] | None:
    """The dense model's claim of the same time, with the place of its row. Of two dense models neither is known to be
    its own."""
    told = [
        (at, each)
        for at, other in enumerate(grouped.rows)
        if other.dense and other.form == row.form
        for each in _timed(other, claim.metric)
        if each.apart and each.setup == claim.setup and each.figure.value
    ]
    return told[0] if len({at for at, _ in told}) == 1 else None


def _ratio(claim: Claim, dense: Claim) -> Claim:
    own, other = claim.figure, dense.figure
    assert own.value is not None and other.value
    low = high = None
    if own.low is not None and own.high is not None and other.low and other.high is not None:
        low, high = own.low / other.high, own.high / other.low
    how = (
        f"{1e3 * own.value:.4g} ms over the dense model's {1e3 * other.value:.4g} ms, in two runs one after the other, "
        f"not in turns: what changed on the machine between them is in it"
    )
    files = tuple(dict.fromkeys((*own.files, *other.files)))
    believed = own.believed and other.believed
    interval = f"{own.interval}, not in turns"
    figure = Figure(own.value / other.value, ESTIMATED, low, high, how, files, interval, believed)
    return replace(claim, metric=f"{claim.metric}_ratio", figure=figure, against=dense.subject)


def _one(dense: Claim) -> Claim:
    how = "the model that others are compared with"
    figure = Figure(1.0, EXACT, how=how, files=dense.figure.files)
    return replace(dense, metric=f"{dense.metric}_ratio", figure=figure, against=dense.subject)
