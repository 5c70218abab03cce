"""What answers cost on a server: rates at the highest load within the SLO, the user's prices, and how often a person or
the dense model must help.

Pure functions. Ends of intervals go through the same formulas, each at its least favourable: intervals of several
figures together are wider than 95 %, never narrower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import Prices, allowed_rework, per_accepted_answer

Status = Literal["measured", "estimated", "not measured"]
NOT_WITHIN = "the SLO was met at no load that was tried"


@dataclass(frozen=True)
class Known:
    """A figure with the ends of its interval, where it has one. ``how`` is a short sentence: where it comes from, or
    why ``value`` is None."""

    value: float | None
    status: Status
    how: str
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {name: getattr(self, name) for name in ("value", "low", "high", "status", "how")}

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
class Help:
    """How often an answer needs another: ``rework`` is the share that a person mends, ``fallback`` the share that the
    dense model answers again, for ``dense_request`` dollars each."""

    rework: Known
    fallback: Known | None = None
    dense_request: Known | None = None


@dataclass(frozen=True)
class ServerCost:
    """One endpoint's costs, in dollars, at ``utilisation``, the share of an hour in which it is loaded so."""

    utilisation: float
    per_million_tokens: Known
    per_request: Known
    per_accepted: Known

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def server_cost(at: AtLoad, prices: Prices, utilisation: float, help: Help | None = None) -> ServerCost:
    """Dollars a million output tokens, an answered request and an accepted one:

        c_tokens = 10⁶ · H / (3600 · R · u)        c_request = H / (3600 · G · u)
        c_accepted = c_request + p_fallback · c_dense + p_rework · c_person

    H is :attr:`~prunekit.profiling.prices.Prices.dollars_an_hour`, R output tokens and G answered requests a second at
    the highest load within the SLO, u ``utilisation``. What is missing is not measured, and says why.
    """
    tokens = _divided(at.tokens, prices, lambda rate: prices.per_million_tokens(rate, utilisation), "output tokens")
    request = _divided(at.requests, prices, lambda rate: prices.per_request(rate, utilisation), "answered requests")
    return ServerCost(utilisation, tokens, request, per_accepted(request, prices, help))


def per_accepted(request: Known, prices: Prices, help: Help | None) -> Known:
    """c_model + p_fallback · c_dense + p_rework · c_person (:func:`~prunekit.profiling.prices.per_accepted_answer`).

    The share of fallbacks is the one that was measured, else the user's ``fallback_share``, else 0, and ``how`` says
    which. Answers that the dense model gives again are taken to need as much rework as the others.
    """
    if request.value is None:
        return unknown(request.how)
    if help is None or help.rework.value is None:
        return unknown("no share of answers to mend is known" if help is None else help.rework.how)
    if prices.dollars_per_rework is None:
        return unknown("the prices name no dollars_per_rework")
    fallback = _fallback(prices, help)
    dense = help.dense_request
    if fallback.value and (dense is None or dense.value is None):
        return unknown("what the dense model's request costs is not known, and some answers fall back to it")
    if dense is None or dense.value is None:
        dense = Known(0.0, "estimated", "")
    parts = (request, dense, fallback, help.rework)
    rework = prices.dollars_per_rework
    low, high = (
        per_accepted_answer(request.ends[end], dense.ends[end], fallback.ends[end], help.rework.ends[end], rework)
        for end in (0, 1)
    )
    value = per_accepted_answer(request.value, dense.value or 0.0, fallback.value or 0.0, help.rework.value, rework)
    words = f"{request.how}; {help.rework.how}, {rework:g} $ each; {fallback.how}"
    return _interval(value, low, high, "estimated", words, parts)


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


def electricity(per_token: Known, prices: Prices) -> Known:
    """Dollars of electricity alone for a million output tokens, from joules a token."""
    if per_token.value is None:
        return unknown(per_token.how)
    made = [
        None if each is None else prices.energy_per_million_tokens(each)
        for each in (per_token.value, per_token.low, per_token.high)
    ]
    if made[0] is None:
        return unknown("the prices name no dollars_per_kwh")
    return Known(made[0], "estimated", per_token.how, made[1], made[2])


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
    return _interval(cost(rate.value), cost(most), high, "estimated", how, (rate,))


def _fallback(prices: Prices, help: Help) -> Known:
    if help.fallback is not None and help.fallback.value is not None:
        return help.fallback
    if prices.fallback_share is not None:
        share = prices.fallback_share
        return Known(share, "estimated", f"{share:.3g} of the answers fall back, by the prices")
    return Known(0.0, "estimated", "no answer falls back")


def _interval(value: float, low: float, high: float | None, status: Status, how: str, parts: Sequence[Known]) -> Known:
    if high is None or all(part.low is None for part in parts):
        return Known(value, status, how)
    if not all(map(math.isfinite, (value, low, high))):
        raise PrunekitError(f"A cost is no number ({how}); check the prices.")
    return Known(value, status, how, low, high)
