"""What tokens and answers cost, where prices are given, and how much rework they may bring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunekit.profiling.prices import allowed_rework, per_accepted_answer
from prunekit.report.facts.claims import ASKED, ESTIMATED, MEASURED, Claim, Figure, missing
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
    bases = [row for row in grouped.rows if row.dense]
    # What no number holds says nothing.
    found = [
        [
            each
            for each in _costs(row, bases, grouped.checkpoint_of(row), prices)
            if math.isfinite(each.figure.value or 0.0)
        ]
        for row in grouped.rows
    ]
    rows = [replace(row, claims=(*row.claims, *more)) for row, more in zip(grouped.rows, found, strict=True)]
    return replace(grouped, rows=tuple(rows))


def _costs(row: Row, bases: Sequence[Row], checkpoint: Row | None, prices: Prices) -> Iterator[Claim]:
    share = prices.utilisation or 1.0
    for claim in row.claims:
        rate = claim.figure.value
        came = "as measured" if claim.figure.status == MEASURED else "as estimated"
        if claim.figure.status not in (MEASURED, ESTIMATED) or not rate:
            continue
        if claim.metric == "tokens_per_second":
            dollars = prices.per_million_tokens(rate)
            if dollars is not None:
                how = f"the prices, and output tokens a second {came}, at {share:.0%} use of the machine"
                yield _estimate(claim, "dollars_per_million", dollars, how)
            if prices.watts is not None:
                how = f"{prices.watts:g} watts, as the prices say, over output tokens a second {came}"
                made = _estimate(claim, "joules_per_token", prices.watts / rate, how)
                yield made
                yield from _electricity(made, prices)
        if claim.metric == "joules_per_token":
            yield from _electricity(claim, prices)
        own = [row, *([checkpoint] if checkpoint is not None else [])]
        if claim.metric == "requests_per_second":
            dollars = prices.per_request(rate)
            if dollars is not None:
                length = _longer(claim, own)
                how = f"the prices, and requests a second {came}{length.said}"
                yield _estimate(claim, "dollars_per_request", dollars * length.value, how, length.files)
                yield from _rework(claim, dollars * length.value, bases, prices, length)
        if claim.metric == "slo_load":
            yield from _within_slo(claim, own, bases, prices)


def _electricity(claim: Claim, prices: Prices) -> Iterator[Claim]:
    """What the energy of a token costs, as far as it is priced."""
    dollars = prices.energy_per_million_tokens(claim.figure.value or 0.0)
    if dollars is not None:
        how = f"{prices.dollars_per_kwh:g} $ a kWh, PUE {prices.pue or 1.0:g}, and joules a token {claim.figure.status}"
        figure = replace(claim.figure, status=ESTIMATED, value=dollars, low=None, high=None, how=how)
        yield replace(claim, metric="electricity_per_million", figure=figure)


@dataclass(frozen=True)
class _Length:
    """How many times a request costs what one of the baseline's length does, the words for it, and the files that it
    comes from."""

    value: float = 1.0
    said: str = ""
    files: tuple[str, ...] = ()


def _longer(claim: Claim, rows: Sequence[Row]) -> _Length:
    """How long the model's answers are by themselves. Load tests of prunekit ask both models for answers of equal
    length; what each writes by itself is known from your records, else from the load test's own texts."""
    if rows[0].dense or claim.answers != ASKED:
        return _Length()
    told = [each for row in rows for each in row.claims if each.metric == "length_ratio" and each.figure.believed]
    told = [each for each in told if each.figure.value and each.figure.status == MEASURED]
    if not told:
        return _Length(said=", of answers as long as the dense model's")
    best = min(told, key=lambda each: bool(each.answers))
    value, files = best.figure.value or 1.0, best.figure.files
    return _Length(value, f", of answers {value:.3g} times as long as the dense model's ({', '.join(files)})", files)


def _within_slo(claim: Claim, rows: Sequence[Row], bases: Sequence[Row], prices: Prices) -> Iterator[Claim]:
    """What an answered and an accepted request cost at the highest load within the SLO. Wrong answers are those of the
    first of ``rows`` that was judged: the model itself, else its checkpoint."""
    dollars = prices.per_request(claim.figure.value or 0.0)
    if dollars is None:
        return
    length = _longer(claim, rows)
    dollars *= length.value
    how = f"the prices, and requests a second at the highest load within the SLO{length.said}"
    yield _estimate(claim, "dollars_per_request", dollars, how, length.files)
    yield from _rework(claim, dollars, bases, prices, length)
    if claim.figure.bound:
        # The load may be higher, so what follows from its cost is not known.
        return
    wrong = [
        each for row in rows for each in row.claims if each.metric == "error_rate" and each.figure.value is not None
    ]
    if not wrong or not prices.dollars_per_rework:
        return
    share = min(1.0, wrong[0].figure.value or 0.0)
    # The dense model has nothing to fall back to.
    back = 0.0 if rows[0].dense else prices.fallback_share or 0.0
    dense = _dense_request(claim, bases, prices) if back else 0.0
    if dense is None:
        why = f"{back:.3g} of the answers fall back to the dense model, and what its request costs is not known"
        yield replace(claim, metric="dollars_per_accepted", figure=missing(why))
        return
    accepted = per_accepted_answer(dollars, dense, back, share, prices.dollars_per_rework)
    whose = "it" if wrong[0].form == claim.form else "its checkpoint"
    how = (
        f"an answered request at the highest load within the SLO{length.said}, and {prices.dollars_per_rework:g} $ for "
        f"each of the {share:.1%} of your records that {whose} gets wrong"
    ) + (f", and the dense model's request for {back:.3g} of the answers, by the prices" if back else "")
    made = _estimate(claim, "dollars_per_accepted", accepted, how)
    files = tuple(dict.fromkeys((*claim.figure.files, *length.files, *wrong[0].figure.files)))
    yield replace(made, figure=replace(made.figure, files=files))


def _rework(claim: Claim, dollars: float, bases: Sequence[Row], prices: Prices, length: _Length) -> Iterator[Claim]:
    """By how much the share of answers that a person mends may rise until what is saved is spent."""
    if not prices.dollars_per_rework or claim.figure.bound:
        return
    if any(each == claim for base in bases for each in base.claims):
        return
    before = _dense_request(claim, bases, prices)
    if before is not None:
        how = f"what a request saves{length.said}, over {prices.dollars_per_rework:g} $ for mending an answer"
        allowed = allowed_rework(before - dollars, prices.dollars_per_rework)
        yield _estimate(claim, "rework_allowed", allowed, how, length.files)


def _dense_request(claim: Claim, bases: Sequence[Row], prices: Prices) -> float | None:
    """Dollars of the dense model's request where it was timed under the set-up of ``claim``, in whatever form. Of two
    dense models under one set-up neither is known to be its own."""
    told = [(base.model, each) for base in bases for each in base.claims]
    same = [(model, each) for model, each in told if each.metric == claim.metric and each.setup == claim.setup]
    one = len({model for model, _ in same}) == 1 and not same[0][1].figure.bound
    rate = same[0][1].figure.value if one else None
    return prices.per_request(rate) if rate else None


def _estimate(claim: Claim, metric: str, value: float, how: str, files: Sequence[str] = ()) -> Claim:
    setup = claim.setup
    if metric == "joules_per_token":
        # What a sensor measured never stands in one column with it.
        setup = f"{claim.setup}, estimated"
    return replace(
        claim,
        metric=metric,
        setup=setup,
        figure=Figure(
            value,
            ESTIMATED,
            how=how,
            files=tuple(dict.fromkeys((*claim.figure.files, *files))),
            believed=claim.figure.believed,
            # A cost falls as the rate rises.
            bound="at most" if claim.figure.bound else "",
        ),
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
    names = (
        "dollars_per_million",
        "electricity_per_million",
        "dollars_per_request",
        "dollars_per_accepted",
        "rework_allowed",
    )
    return [each for name in names for each in columns(name, grouped) if each.known()]
