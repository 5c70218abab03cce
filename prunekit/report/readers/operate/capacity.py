"""The highest load within the SLO, as ``prunekit bench-server`` found it, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.report.facts.claims import MEASURED, Figure
from prunekit.report.facts.fields import Fields
from prunekit.report.readers.place import Place

STATUSES = ("found", "never met", "never broken", "time was up", "not measured")
_QUANTITIES = ("ttft", "tpot", "e2e")
_MOST_BLOCKS = 100


def slo_words(said: Fields) -> str:
    """The objective of a capacity: TTFT ≤ 500 ms, TPOT ≤ 50 ms at p95."""
    slo = said.object("slo")
    bounds = [f"{name.upper()} ≤ {slo.number(f'{name}_ms'):g} ms" for name in _QUANTITIES if f"{name}_ms" in slo]
    return f"{', '.join(bounds)} at p{slo.number('percentile', 50, 100):g}"


def within(said: Fields, place: Place) -> Figure | None:
    """Requests a second within the SLO, from the lowest to the highest block; None where no load was found."""
    rate = said.maybe("rate")
    status = status_of(said)
    if rate is None or status == "never met":
        return None
    found = [each.maybe("rate") for each in said.objects("blocks", _MOST_BLOCKS)]
    rates = [each for each in found if each is not None]
    several = len(rates) > 1 and min(rates) <= rate <= max(rates)
    more = {
        "never broken": "; the highest load that was tried did not break the SLO, so it may be more",
        "time was up": "; the time was up before the search was done, so it may be more",
    }.get(status, "")
    how = f"geometric mean of {len(rates)} searches{more}" if len(rates) > 1 else f"one search{more}"
    low, high = (min(rates), max(rates)) if several else (None, None)
    bound = "at least" if more else ""
    return Figure(rate, MEASURED, low, high, how, (place.name,), f"over {len(rates)} blocks", bound=bound)


def open_ended(data: Fields) -> list[bool]:
    """Whether the highest load of each endpoint may be more than the file says."""
    said = data.maybe_object("capacity")
    ends = [] if said is None else said.objects("endpoints", 2)
    return [each.maybe("rate") is not None and status_of(each) in ("never broken", "time was up") for each in ends]


def status_of(said: Fields) -> str:
    """How a search ended. Raises PrunekitError where the word is none."""
    status = said.text("status")
    if status not in STATUSES:
        raise said.wrong("status", f"one of {', '.join(STATUSES)}")
    return status


def capacity_words(said: Fields | None, sides: Sequence[str]) -> tuple[str, bool | None, tuple[str, ...]]:
    """The verdict on the load, whether it speaks for the model, and a sentence for each side."""
    if said is None:
        return "no SLO was asked for", None, ("Without an SLO there is no highest load within it.",)
    ends = dict(zip(sides, said.objects("endpoints", 2), strict=False))
    if "endpoint" not in ends:
        raise said.wrong("endpoints", "a result for each model")
    names = {"baseline": "The dense model" if len(sides) == 2 else "", "endpoint": "This model"}
    reasons = (
        f"The SLO: {slo_words(said)}, at most 1 % of the requests failed.",
        *(f"{names[side]}: {each.text('words').rstrip('.')}." for side, each in ends.items()),
    )
    status = status_of(ends["endpoint"])
    ratio = said.maybe_object("ratio")
    value = None if ratio is None else ratio.maybe("value")
    if status == "never met":
        return "SLO not met", False, reasons
    if ratio is not None and value is not None:
        low, high = ratio.maybe("low"), ratio.maybe("high")
        if low is None or high is None:
            return f"{value:.2f} × the dense model's load (too few blocks for an interval)", None, reasons
        passes = None if low <= 1 <= high else low > 1
        return f"{value:.2f} × the dense model's load ({low:.2f} to {high:.2f})", passes, reasons
    rate = ends["endpoint"].maybe("rate")
    if status == "time was up" and rate is not None:
        return (
            f"at least {rate:.3g} requests/s within the SLO; the time was up before the search was done",
            None,
            reasons,
        )
    words = {
        "never broken": "SLO never broken",
        "time was up": "the time was up before the search was done",
        "not measured": "not measured",
    }
    return words.get(status, "SLO met"), None, reasons
