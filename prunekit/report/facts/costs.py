"""What tokens and answers cost, where prices are given, and how much rework they may bring."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunekit.profiling.prices import allowed_rework
from prunekit.report.facts.claims import ESTIMATED, MEASURED, Claim, Figure
from prunekit.report.facts.rows import Grouped, Row
from prunekit.report.facts.tables import Column, columns

if TYPE_CHECKING:
    from prunekit.profiling.prices import Prices


@dataclass(frozen=True)
class Use:
    """Dollars of a million output tokens of each row (None: not known) where so large a share of an hour is used."""

    utilisation: float
    dollars: tuple[float | None, ...]


def priced(grouped: Grouped, prices: Prices | None) -> Grouped:
    """``grouped`` with what follows from ``prices`` and the rates that were measured: each cost under the set-up of the
    rate that it comes from. They are estimates: they hold what the user says of the machine."""
    if prices is None:
        return grouped
    base = next((row for row in grouped.rows if row.dense), None)
    # What no number holds says nothing.
    found = [
        [each for each in _costs(row, base, prices) if math.isfinite(each.figure.value or 0.0)] for row in grouped.rows
    ]
    rows = [replace(row, claims=(*row.claims, *more)) for row, more in zip(grouped.rows, found, strict=True)]
    return replace(grouped, rows=tuple(rows))


def _costs(row: Row, base: Row | None, prices: Prices) -> Iterator[Claim]:
    said = "the prices, and output tokens a second as measured"
    share = prices.utilisation or 1.0
    said += f", at {share:.0%} use of the machine"
    for claim in row.claims:
        rate = claim.figure.value
        if claim.figure.status != MEASURED or not rate:
            continue
        if claim.metric == "tokens_per_second":
            dollars = prices.per_million_tokens(rate)
            if dollars is not None:
                yield _estimate(claim, "dollars_per_million", dollars, said)
            if prices.watts is not None:
                how = f"{prices.watts:g} watts, as the prices say, over output tokens a second as measured"
                yield _estimate(claim, "joules_per_token", prices.watts / rate, how)
        if claim.metric == "requests_per_second":
            dollars = prices.per_request(rate)
            if dollars is not None:
                yield _estimate(claim, "dollars_per_request", dollars, "the prices, and requests a second as measured")
                yield from _rework(claim, dollars, base, prices)


def _rework(claim: Claim, dollars: float, base: Row | None, prices: Prices) -> Iterator[Claim]:
    """By how much the share of answers that a person mends may rise until what is saved is spent."""
    if base is None or not prices.dollars_per_rework:
        return
    same = [each for each in base.claims if each.metric == claim.metric and each.setup == claim.setup]
    rate = same[0].figure.value if same else None
    if not rate or claim in base.claims:
        return
    before = prices.per_request(rate)
    if before is not None:
        how = f"what a request saves, over {prices.dollars_per_rework:g} $ for mending an answer"
        yield _estimate(claim, "rework_allowed", allowed_rework(before - dollars, prices.dollars_per_rework), how)


def _estimate(claim: Claim, metric: str, value: float, how: str) -> Claim:
    setup = claim.setup
    if metric == "joules_per_token":
        # What a sensor measured never stands in one column with it.
        setup = f"{claim.setup}, estimated"
    return replace(
        claim,
        metric=metric,
        setup=setup,
        figure=Figure(value, ESTIMATED, how=how, files=claim.figure.files, believed=claim.figure.believed),
    )


def uses(column: Column, prices: Prices) -> list[Use]:
    """``column``, dollars of a million tokens, at the shares of an hour that are reckoned with."""
    now = prices.utilisation or 1.0
    return [
        Use(share, tuple(None if each.value is None else each.value * now / share for each in column.figures))
        for share in prices.utilisations
    ]


def cost_columns(grouped: Grouped) -> list[Column]:
    """Costs under every set-up that is known."""
    names = ("dollars_per_million", "dollars_per_request", "rework_allowed", "joules_per_token")
    return [each for name in names for each in columns(name, grouped) if each.known()]
