"""Joules at a loaded server, as ``prunekit bench-server --energy`` counted them."""

from __future__ import annotations

from collections.abc import Iterator

from prunekit.report.facts.claims import MEASURED, Claim, Figure, Subject
from prunekit.report.facts.fields import Fields
from prunekit.report.readers.place import Place

# Names in the file, the metric, and what more must be equal where two are compared.
_FIGURES = (
    ("per_token", "joules_per_token", ""),
    ("per_request", "joules_per_request", ""),
    ("above_idle_per_token", "joules_per_token", ", above the idle machine"),
    ("above_idle_per_request", "joules_per_request", ", above the idle machine"),
)


def energy_claims(said: Fields, model: tuple[Subject, str], setup: str, place: Place) -> Iterator[Claim]:
    """What one endpoint took at one load. Figures of two methods never stand in one column."""
    method = said.text("method", "by a counter")
    for name, metric, more in _FIGURES:
        each = said.maybe_object(name)
        value = None if each is None else each.maybe("value")
        if each is None or value is None or each.text("status", "") != MEASURED:
            continue
        low, high = each.maybe("low"), each.maybe("high")
        if low is None or high is None:
            low = high = None
        figure = Figure(value, MEASURED, low, high, each.text("how", ""), (place.name,))
        yield Claim(*model, metric, figure, f"{setup}, {MEASURED}, {method}{more}")


def lost_energy(data: Fields, place: Place) -> Iterator[str]:
    """Why joules were not measured, where they were asked for; once for each reason."""
    for load in data.objects("loads", 200):
        spent = load.maybe_object("energy")
        for side in () if spent is None else ("baseline", "endpoint"):
            each = spent.maybe_object(side) if spent is not None else None
            for name in () if each is None else ("per_request", "above_idle_per_request"):
                told = each.maybe_object(name) if each is not None else None
                if told is not None and told.maybe("value") is None:
                    what = "Energy" if name == "per_request" else "Energy above the idle machine"
                    yield f"{what} in {place.name}: {told.text('how', 'no reason was given').rstrip('.')}."
                    break
