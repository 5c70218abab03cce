"""Joules at a loaded server, as ``prunekit bench-server --energy`` counted them."""

from __future__ import annotations

from collections.abc import Iterator

from prunekit.report.facts.claims import MEASURED, Claim, Figure, Subject
from prunekit.report.facts.fields import Fields
from prunekit.report.readers.operate.versions import SIDES
from prunekit.report.readers.place import Place

# Names in the file, the metric, and what more must be equal where two are compared.
_FIGURES = (
    ("per_token", "joules_per_token", ""),
    ("per_request", "joules_per_request", ""),
    ("above_idle_per_token", "joules_per_token", ", above the idle machine"),
    ("above_idle_per_request", "joules_per_request", ", above the idle machine"),
)
# What is said to be lost, in this order: the first tells of both.
_LOST = (("per_request", "Energy"), ("above_idle_per_request", "Energy above the idle machine"))


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
    spent = [each for load in data.objects("loads", 200) if (each := load.maybe_object("energy")) is not None]
    sides = [side for each in spent for name in SIDES if (side := each.maybe_object(name)) is not None]
    for side in sides:
        for name, what in _LOST:
            told = side.maybe_object(name)
            if told is not None and told.maybe("value") is None:
                yield f"{what} in {place.name}: {told.text('how', 'no reason was given').rstrip('.')}."
                break
