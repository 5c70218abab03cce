"""Quality against what it is paid for: a point for each model, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.report.facts.claims import EXACT, INTERVAL, MEASURED, Figure
from prunekit.report.facts.metrics import METRICS
from prunekit.report.facts.rows import Grouped
from prunekit.report.facts.tables import Column
from prunekit.report.front import front
from prunekit.report.page.markup import Markup, element, scrolling
from prunekit.report.page.svg import FFN, GUESS, INK, RULE, page_style, svg

# Beyond it, no axis is readable.
_LARGEST = 1e12
_SURE = (MEASURED, EXACT)


@dataclass(frozen=True)
class Point:
    """A model called ``letter`` at ``x`` and ``y``, both figures with a value. ``setup`` is what ``x`` was told under
    where that is not the set-up of the rest."""

    letter: str
    x: Figure
    y: Figure
    setup: str | None = None

    @property
    def place(self) -> tuple[float, float]:
        assert self.x.value is not None and self.y.value is not None
        return self.x.value, self.y.value

    @property
    def is_measured(self) -> bool:
        return self.x.status in _SURE and self.y.status in _SURE


def points_of(grouped: Grouped, cost: Column, quality: Column) -> list[Point]:
    """The models of which both are known."""
    triples = zip(grouped.rows, cost.figures, quality.figures, strict=True)
    return [
        Point(row.letter, x, y, cost.elsewhere.get(place))
        for place, (row, x, y) in enumerate(triples)
        if x.value is not None and y.value is not None and max(abs(x.value), abs(y.value)) < _LARGEST
    ]


def compared(points: Sequence[Point]) -> list[Point]:
    """Those that may be compared: of one set-up, and what is exact (the dense model, which is 1 in all of them). What
    was predicted never stands against what was measured."""
    own = [each for each in points if each.setup is None]
    others = [each.setup for each in points if each.setup is not None]
    if others and sum(each.x.status != EXACT for each in own) == 0:
        chosen = max(dict.fromkeys(others), key=others.count)
        return [each for each in points if each.setup in (None, chosen)]
    return own


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """Those on the Pareto front, from the cheapest on."""
    told = zip(points, front([each.place for each in points]), strict=True)
    return sorted((each for each, best in told if best), key=lambda each: each.place)


def plot(grouped: Grouped, cost: Column, quality: Column, number: int) -> Markup | None:
    """The figure with its caption; None where fewer than two models can be placed."""
    points = points_of(grouped, cost, quality)
    if len(points) < 2:
        return None
    fair = compared(points)
    best = unbeaten(fair)
    title = f"{METRICS[quality.metric].title} against {METRICS[cost.metric].title.lower()}: " + "; ".join(
        f"{each.letter} at {_said(cost, each.x)}, {_said(quality, each.y)}" for each in points
    )
    with page_style():
        picture = svg(_draw(points, best, cost, quality), number, title)
    beaten = [each.letter for each in fair if each not in best]
    apart = [each.letter for each in points if each not in fair]
    said = "Further left is cheaper, further down is better. "
    said += f"No other model beats {', '.join(each.letter for each in best)}"
    said += f"; beaten: {', '.join(beaten)}. " if beaten else ". "
    said += f"Not compared with them: {', '.join(apart)}, told under another set-up. " if apart else ""
    setup = next((each.setup for each in fair if each.setup is not None), None)
    said += f"{METRICS[cost.metric].title} of all but the dense model: {setup}. " if setup else ""
    if not all(each.is_measured for each in points):
        said += "Filled circles and whole lines are measured; hollow diamonds and dashed lines are not. "
    across = next((each.x.interval for each in points if each.x.low is not None), INTERVAL)
    said += "Lines are intervals of 95 %" if across == INTERVAL else "Vertical lines are intervals of 95 %"
    said += ". " if across == INTERVAL else f", horizontal ones {across}. "
    said += f"{METRICS[quality.metric].title}: {quality.setup}."
    return element(
        "figure",
        scrolling(f"Plot: {METRICS[quality.metric].title} against {METRICS[cost.metric].title}", picture),
        element("figcaption", said),
        class_="picture",
    )


def _said(column: Column, figure: Figure) -> str:
    metric = METRICS[column.metric]
    return f"{metric.write(figure.value or 0.0)} {metric.unit}".strip()


def _draw(points: Sequence[Point], best: Sequence[Point], cost: Column, quality: Column) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8.0, 4.2), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.6)
    axis.set_axisbelow(True)
    scale = _scale_of(cost.metric)
    axis.step(
        [each.place[0] / scale for each in best],
        [each.place[1] for each in best],
        where="post",
        color=RULE,
        linewidth=1.5,
    )
    for each in points:
        x, y = each.place[0] / scale, each.place[1]
        colour = FFN if each.is_measured else GUESS
        line: Any = {"color": colour, "linewidth": 1.5, "linestyle": "-" if each.is_measured else "--"}
        low, high = _bounds(each.y)
        if low is not None and high is not None:
            axis.plot([x, x], [low, high], **line)
        low, high = _bounds(each.x)
        if low is not None and high is not None:
            axis.plot([low / scale, high / scale], [y, y], **line)
        mark: Any = (
            {"marker": "o", "markerfacecolor": colour}
            if each.is_measured
            else {"marker": "D", "markerfacecolor": "none"}
        )
        axis.plot([x], [y], color=colour, markersize=8, linestyle="none", **mark)
        axis.annotate(each.letter, (x, y), textcoords="offset points", xytext=(9, 5), color=INK, fontweight="bold")
    largest = max(each.place[1] for each in points)
    smallest = min((each.place[1] for each in points if each.place[1] > 0), default=1.0)
    # Below it differences are seen on a plain scale too, however small the smallest is.
    small = max(0.1, smallest)
    if largest > 10 * small:
        axis.set_yscale("symlog", linthresh=small)
        # Not as powers of ten, whose marks an SVG has as they are.
        axis.yaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.08, y=0.12)
    for column, name in ((cost, axis.set_xlabel), (quality, axis.set_ylabel)):
        metric = METRICS[column.metric]
        name(f"{metric.title}, {metric.unit}" if metric.unit else metric.title)
    return figure


def _bounds(figure: Figure) -> tuple[float | None, float | None]:
    if figure.low is None or figure.high is None or max(abs(figure.low), abs(figure.high)) >= _LARGEST:
        return None, None
    return figure.low, figure.high


def _scale_of(metric: str) -> float:
    """How much of a value is one of its unit."""
    return {"MiB": 2.0**20, "ms": 1e-3, "M": 1e6}.get(METRICS[metric].unit, 1.0)
