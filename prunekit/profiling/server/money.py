"""What answers cost at the highest load within the SLO, from the user's prices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prunekit.profiling.prices import Prices, allowed_rework
from prunekit.profiling.server.report import NAMES, Compared, ServerReport
from prunekit.profiling.server.statistics import Ratio
from prunekit.profiling.server_costs import AtLoad, Known, ServerCost, break_even, server_cost, unknown

# Of answers that were to end by themselves: where more were cut off, their lengths are those of the limit.
MOST_CUT = 0.5


@dataclass(frozen=True)
class Money:
    """Costs by endpoint, in the order of ``ServerReport.served``, each at every share of an hour that is used; and
    ``allowed_rework``: by how many percentage points the share of answers to mend may rise until nothing is saved (at
    the first of these shares; None: one endpoint alone)."""

    costs: tuple[tuple[ServerCost, ...], ...]
    allowed_rework: Known | None
    prices: Prices

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """JSON values only."""
        made = {name: [each.to_dict() for each in costs] for name, costs in zip(names, self.costs, strict=True)}
        allowed = None if self.allowed_rework is None else self.allowed_rework.to_dict()
        return {"endpoints": made, "allowed_rework_points": allowed, "prices": self.prices.to_dict()}


def money(report: ServerReport, prices: Prices) -> Money:
    """Dollars at the highest load within the SLO; not measured where there is none.

    Both servers were asked for answers of equal length. Where answers that end by themselves were measured, a request
    to the endpoint costs as many times more as its answers are longer than the baseline's (:func:`longer`)."""
    loads = [at_load(report, side) for side in range(len(report.served))]
    costs = tuple(tuple(server_cost(at, prices, used) for used in prices.utilisations) for at in loads)
    if len(costs) < 2:
        return Money(costs, None, prices)
    dense, pruned = (each[0].per_request for each in costs)
    if report.capacity is not None and any(report.capacity.open_ended):
        # A difference of bounds bounds nothing.
        side = report.capacity.open_ended.index(True)
        name = report.names[side]
        why = {
            "never broken": f"the SLO of the {name} was never broken, so its highest load is more",
            "time was up": f"the search for the highest load of the {name} was not done, so it may be more",
        }
        return Money(costs, unknown(why[report.capacity.status[side]]), prices)
    return Money(costs, _paired(break_even(dense, pruned, prices), dense, report, prices), prices)


def _paired(allowed: Known, dense: Known, report: ServerReport, prices: Prices) -> Known:
    """``allowed`` with the range that the ratio of both highest loads gives it. Each load has a wider one, of what is
    common to both: the pattern of the requests, and how fast the machine was in that block."""
    ratio = Ratio(None) if report.capacity is None else report.capacity.ratio
    if None in (allowed.value, dense.value, prices.dollars_per_rework) or ratio.low is None or ratio.high is None:
        return allowed
    assert allowed.value is not None and dense.value is not None and prices.dollars_per_rework is not None
    lengths = longer(report)
    even = 1.0 if lengths.value is None else lengths.value
    shortest, longest = (even if each is None else each for each in (lengths.low, lengths.high))
    low, high = (
        100 * allowed_rework(dense.value * (1 - length / rate), prices.dollars_per_rework)
        for length, rate in ((longest, ratio.low), (shortest, ratio.high))
    )
    return replace(allowed, low=min(low, allowed.value), high=max(high, allowed.value))


def at_load(report: ServerReport, side: int) -> AtLoad:
    """Requests and output tokens a second. Tokens are those of the mean answer of exact length; requests to the
    endpoint are fewer where its answers are longer by themselves."""
    if report.capacity is None:
        none = unknown("no SLO was named, so there is no highest load within it")
        return AtLoad(none, none)
    rate, said = report.capacity.rates[side], report.capacity.words[side]
    if rate is None:
        return AtLoad(unknown(said), unknown(said))
    low, high = report.capacity.ends[side] or (None, None)
    found = Known(rate, "measured", said, low, high, "at least" if report.capacity.open_ended[side] else "")
    requests = _shared(found, report, side)
    fixed = [load.results[side].tokens for load in report.loads if load.results[side].load.kind != "natural"]
    lengths = [each for each in fixed if each is not None]
    if not lengths:
        return AtLoad(requests, unknown("the server does not count tokens"))
    mean = sum(lengths) / len(lengths)
    low, high = (None if each is None else each * mean for each in (low, high))
    how = f"{said}, {mean:.3g} tokens an answer"
    return AtLoad(requests, replace(found, value=rate * mean, how=how, low=low, high=high))


def longer(report: ServerReport) -> Ratio:
    """By how many times the endpoint's answers that end by themselves are as long as the baseline's: in tokens, else in
    characters; no ratio where that was not measured, or most answers were cut off."""
    load = _natural(report)
    if load is None or _cut(load) > MOST_CUT:
        return Ratio(None)
    found = [load.ratios[name] for name in ("tokens", "characters") if name in load.ratios]
    return next((each for each in found if each.value is not None), Ratio(None))


def length_notes(report: ServerReport) -> list[str]:
    """A sentence where the endpoint's answers are shown to be longer, or shorter, by themselves, or where that could
    not be seen."""
    load, ratio = _natural(report), longer(report)
    if load is not None and _cut(load) > MOST_CUT:
        return [
            f"Of the answers that were to end by themselves {_cut(load):.0%} were cut off at "
            f"{report.config.natural_tokens} tokens, so their lengths are not compared; give a larger --natural-tokens."
        ]
    if ratio.value is None or ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high:
        return []
    return [
        f"By themselves the endpoint's answers are {ratio.value:.2f} times as long as the baseline's "
        f"({ratio.low:.2f} to {ratio.high:.2f}). Loads with exact lengths, and the ratio of the highest loads, do not "
        f"hold this: for requests of users that ratio is less, by up to a factor of {ratio.value:.2f}."
    ]


def _natural(report: ServerReport) -> Compared | None:
    return next((each for each in report.loads if each.results[0].load.kind == "natural"), None)


def _cut(load: Compared) -> float:
    """The share of answers that were cut off, of the endpoint with the larger one."""
    return max(each.truncated or 0.0 for each in load.results)


def _shared(requests: Known, report: ServerReport, side: int) -> Known:
    """``requests`` of exact length as requests whose answers end by themselves, in units of the baseline's length."""
    if len(report.served) < 2:
        return requests
    ratio, rate = longer(report), requests.value
    if ratio.value is None or rate is None:
        return replace(requests, how=f"{requests.how}; both models' answers taken as equally long")
    if side < NAMES.index("endpoint"):
        return requests
    how = f"{requests.how}, over {ratio.value:.3g}: its answers that end by themselves are so many times as long"
    made = replace(requests, value=rate / ratio.value, status="estimated", how=how)
    if ratio.low is None or ratio.high is None:
        low, high = (None if each is None else each / ratio.value for each in (requests.low, requests.high))
        return replace(made, low=low, high=high)
    least, most = requests.ends
    return replace(made, low=least / ratio.high, high=most / ratio.low)
