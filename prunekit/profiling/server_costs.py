"""What answers cost on a server: rates at the highest load within the SLO, and the user's prices.

Pure functions. Ends of intervals go through the same formulas, each at its least favourable: intervals of several
figures together are wider than 95 %, never narrower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import Prices, allowed_rework

Status = Literal["measured", "estimated", "not measured"]
# What a bound of a rate says of a cost.
_UPSIDE_DOWN: dict[str, Literal["", "at least", "at most"]] = {"": "", "at least": "at most", "at most": "at least"}
NOT_WITHIN = "the SLO was met at no load that was tried"


@dataclass(frozen=True)
class Known:
    """A figure with the ends of its interval, where it has one. ``how`` is a short sentence: where it comes from, or
    why ``value`` is None. ``bound`` is "at least" or "at most" where the value only bounds it."""

    value: float | None
    status: Status
    how: str
    low: float | None = None
    high: float | None = None
    bound: Literal["", "at least", "at most"] = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        said = {name: getattr(self, name) for name in ("value", "low", "high", "status", "how")}
        return {**said, "bound": self.bound} if self.bound else said

    @property
    def ends(self) -> tuple[float, float]:
        """From where to where it is; the value itself twice, where it has no interval. Only of a figure that is."""
        assert self.value is not None
        return (
            self.value if self.low is None else self.low,
            self.value if self.high is None else self.high,
        )


def unknown(why: str) -> Known:
    return Known(None, "not measured", why)


@dataclass(frozen=True)
class AtLoad:
    """One endpoint at its highest load within the SLO: ``requests`` that were answered within it and output ``tokens``,
    both a second, of the whole replica."""

    requests: Known
    tokens: Known


@dataclass(frozen=True)
class ServerCost:
    """One endpoint's costs, in dollars, at ``utilisation``, the share of an hour in which it is loaded so."""

    utilisation: float
    per_million_tokens: Known
    per_request: Known

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        costs = {name: getattr(self, name).to_dict() for name in ("per_million_tokens", "per_request")}
        return {"utilisation": self.utilisation, **costs}


def server_cost(at: AtLoad, prices: Prices, utilisation: float) -> ServerCost:
    """Dollars a million output tokens, and an answered request:

        c_tokens = 10⁶ · H / (3600 · R · u)        c_request = H / (3600 · G · u)

    H is :attr:`~prunekit.profiling.prices.Prices.dollars_an_hour`, R output tokens and G answered requests a second at
    the highest load within the SLO, u ``utilisation``. What is missing is not measured, and says why.
    """
    tokens = _divided(at.tokens, prices, lambda rate: prices.per_million_tokens(rate, utilisation), "output tokens")
    request = _divided(at.requests, prices, lambda rate: prices.per_request(rate, utilisation), "answered requests")
    return ServerCost(utilisation, tokens, request)


def break_even(dense: Known, pruned: Known, prices: Prices) -> Known:
    """By how many percentage points the share of answers that a person mends may rise until nothing is saved:
    100 · (c_dense - c_pruned) / c_person, dollars a request over dollars a rework
    (:func:`~prunekit.profiling.prices.allowed_rework`). Below 0 where a request costs more than before."""
    if dense.value is None or pruned.value is None:
        return unknown(dense.how if dense.value is None else pruned.how)
    if not prices.dollars_per_rework:
        return unknown("the prices name no dollars_per_rework above 0")
    rework = prices.dollars_per_rework
    value = 100 * allowed_rework(dense.value - pruned.value, rework)
    low = 100 * allowed_rework(dense.ends[0] - pruned.ends[1], rework)
    high = 100 * allowed_rework(dense.ends[1] - pruned.ends[0], rework)
    return _interval(
        value, low, high, "estimated", f"what a request saves, over {rework:g} $ a rework", (dense, pruned)
    )


def energy_of(joules: Known, count: float, what: str) -> Known:
    """ΔE / ``count``: joules for one of ``what`` (output tokens, requests) that were made in the same windows, their
    prompts read in it too."""
    if joules.value is None:
        return unknown(joules.how)
    if not (math.isfinite(count) and count > 0):
        return unknown(f"no {what} were counted in the windows")
    low, high = (None if each is None else each / count for each in (joules.low, joules.high))
    return Known(joules.value / count, joules.status, f"{joules.how}, over {count:g} {what}", low, high)


def _divided(rate: Known, prices: Prices, cost: Any, what: str) -> Known:
    """The cost at a rate, which falls as the rate rises."""
    if rate.value is None:
        return unknown(rate.how)
    if not rate.value > 0:
        return unknown(NOT_WITHIN)
    if prices.dollars_an_hour is None:
        return unknown(prices.left_out or "no hour is priced")
    least, most = rate.ends
    # A rate whose interval reaches 0 has a cost without bound.
    high = cost(least) if least > 0 else None
    how = f"{what} at the highest load within the SLO, and the prices ({rate.how})"
    made = _interval(cost(rate.value), cost(most), high, "estimated", how, (rate,))
    return replace(made, bound=_UPSIDE_DOWN[rate.bound])


def _interval(value: float, low: float, high: float | None, status: Status, how: str, parts: Sequence[Known]) -> Known:
    if high is None or all(part.low is None for part in parts):
        return Known(value, status, how)
    if not all(map(math.isfinite, (value, low, high))):
        raise PrunekitError(f"A cost is no number ({how}); check the prices.")
    return Known(value, status, how, low, high)
