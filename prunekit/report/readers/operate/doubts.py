"""What a load test did not measure, and what speaks against its figures, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from prunekit.report.facts.fields import Fields
from prunekit.report.readers.operate.versions import SIDES, flag_lines
from prunekit.report.readers.place import Place


def lost(data: Fields, name: str) -> Iterator[str]:
    """What was not measured of the model called ``name``."""
    if "capacity" not in data:
        yield f"The highest load within an SLO of {name}: no SLO was asked for (bench-server --slo)."
    for load in data.objects("loads", 200):
        result = load.object("endpoint")
        for quantity in ("ttft", "tpot"):
            few = [
                f"p{100 * each.number('share'):g}"
                for each in result.objects(quantity, 50)
                if each.text("status", "") == "too few" and each.number("share") > 0.5
            ]
            if few:
                yield (
                    f"{quantity.upper()} at {' and '.join(few)} under {load.text('load')}: {result.count('requests')} "
                    "requests are too few for it."
                )


def doubts(data: Fields, place: Place) -> Iterator[str]:
    """Why figures are not to be believed, and what else the test says of itself."""
    stopped = data.maybe_text("stopped")
    if stopped:
        yield f"{place.name}: the load test ended early: {stopped.rstrip('.')}."
    for load in data.objects("loads", 200):
        for side in SIDES:
            result = load.maybe_object(side)
            for why in () if result is None else result.texts("void"):
                yield f"{place.name}: {load.text('load')} of the {side} is not to be believed: {why}"
    yield from flag_lines(place, data.texts("notes"))
