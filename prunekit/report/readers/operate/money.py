"""What answers cost at the highest load within the SLO, by the prices that ``prunekit bench-server`` was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from prunekit.report.facts.claims import ESTIMATED, Claim, Figure, Sheet, Subject
from prunekit.report.facts.fields import Fields
from prunekit.report.facts.metrics import plain
from prunekit.report.readers.operate.capacity import open_ended
from prunekit.report.readers.place import Place

_COSTS = {
    "per_million_tokens": ("dollars_per_million", "$ a million output tokens"),
    "per_request": ("dollars_per_request", "$ an answered request"),
}
_OPEN = "a highest load may be more than was found, so a request may cost less"
_INTERVAL = "ends of what it follows from"


def cost_claims(data: Fields, places: Mapping[str, tuple[Subject, str]], setup: str, place: Place) -> Iterator[Claim]:
    """Costs at each share of an hour that is used. They never stand in one column with those of other prices."""
    said = data.maybe_object("cost")
    if said is None:
        return
    first = ""
    # Files of before don't say themselves which costs are bounds, and subtracted them.
    bounds = dict(zip(places, open_ended(data), strict=False))
    for side, (subject, form) in places.items():
        for cost in said.object("endpoints").objects(side, 20):
            own = f"{setup}, {cost.number('utilisation', most=1):.0%} used, prices of {place.name}"
            first = first or own
            for name, (metric, _) in _COSTS.items():
                figure = _figure(cost.maybe_object(name), place)
                if figure is not None:
                    only = "at most" if bounds.get(side) else figure.bound
                    yield Claim(subject, form, metric, replace(figure, bound=only), own)
    if any(bounds.values()):
        return
    figure = _figure(said.maybe_object("allowed_rework_points"), place, 0.01)
    if figure is not None:
        subject, form = places["endpoint"]
        yield Claim(subject, form, "rework_allowed", figure, first)


def _figure(said: Fields | None, place: Place, scale: float = 1.0) -> Figure | None:
    value = None if said is None else said.maybe("value", -1e300)
    if said is None or value is None:
        return None
    low, high = said.maybe("low", -1e300), said.maybe("high", -1e300)
    how, bound = said.text("how", ""), said.text("bound", "")
    if low is None or high is None:
        return Figure(scale * value, ESTIMATED, how=how, files=(place.name,), bound=bound)
    low, high = scale * low, scale * high
    return Figure(scale * value, ESTIMATED, low, high, how, (place.name,), _INTERVAL, bound=bound)


def cost_sheet(data: Fields, names: Mapping[str, str]) -> Sheet | None:
    """The same as a table, with the break-even rework rate in its last row."""
    said = data.maybe_object("cost")
    if said is None:
        return None
    costs = {side: list(said.object("endpoints").objects(side, 20)) for side in names}
    rows: list[tuple[str, ...]] = []
    for each in zip(*costs.values(), strict=False):
        used = f"{each[0].number('utilisation', most=1):.0%} used"
        for name, (_, title) in _COSTS.items():
            values = [None if (told := one.maybe_object(name)) is None else told.maybe("value") for one in each]
            if any(value is not None for value in values):
                cells = ("not measured" if value is None else f"≈ {plain(value)}" for value in values)
                rows.append((f"{used}: {title}", *cells))
    allowed = said.maybe_object("allowed_rework_points")
    value = None if allowed is None else allowed.maybe("value", -1e300)
    if value is not None and any(open_ended(data)):
        rows.append(("break-even: rework that may be added", *[""] * (len(names) - 1), f"not measured: {_OPEN}"))
    elif allowed is not None:
        words = f"not measured: {allowed.text('how', '')}" if value is None else f"≈ {plain(value)} percentage points"
        rows.append(("break-even: rework that may be added", *[""] * (len(names) - 1), words))
    return (
        Sheet("What it costs at the highest load within the SLO", ("", *names.values()), tuple(rows)) if rows else None
    )
