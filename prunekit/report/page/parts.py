"""The parts of the page below the first table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.report.facts.claims import FileSaid, Planned
from prunekit.report.facts.costs import cost_columns, uses
from prunekit.report.facts.metrics import METRICS, QUALITY
from prunekit.report.facts.rows import Grouped
from prunekit.report.facts.tables import Column, Decision, columns
from prunekit.report.page.cells import called, figure_table, heading, sources_table
from prunekit.report.page.markup import Markup, element, joined, scrolling, section
from prunekit.report.page.svg import BAR, FFN, HEADS, page_style, svg
from prunekit.report.page.tradeoff import plot
from prunekit.report.pictures import widths_figure

if TYPE_CHECKING:
    from prunekit.profiling.prices import Prices

_MOST_PICTURES = 12
_SPEED = (
    "ttft_ratio",
    "tpot_ratio",
    "ttft",
    "tpot",
    "ttft_p95",
    "tpot_p95",
    "ttft_p99",
    "tpot_p99",
    "latency",
    "latency_p95",
    "latency_p99",
    "slo_load",
    "slo_load_ratio",
    "tokens_per_second",
    "requests_per_second",
    "goodput",
    "failed_share",
    "output_tokens",
    "length_ratio",
    "truncated_share",
    "peak_bytes",
)
_SERVICE = (
    "error_rate",
    "error_rise",
    "flips",
    "shadow_kl",
    "shadow_agreement",
    "rejected_share",
    "reworked_share",
    "alarms",
)
_ENERGY = ("joules_per_token", "joules_per_request")
_SIZE = (
    "parameters",
    "blocks_share",
    "file_bytes",
    "weight_bytes",
    "kv_bytes_per_token",
    "memory_bytes",
    "users",
    "prune_minutes",
)


def tradeoffs(grouped: Grouped, decision: Decision) -> Markup | None:
    """Quality against size, and against the time of a token."""
    sizes = [decision.file_bytes] if decision.file_bytes.known() > 1 else columns("parameters", grouped)[:1]
    costs = [*sizes, decision.tpot_ratio, decision.ttft_ratio]
    made = [plot(grouped, cost, decision.quality, number) for number, cost in enumerate(costs, start=1)]
    shown = [each for each in made if each is not None]
    return section("tradeoff", "Quality against size and time", *shown) if shown else None


def widths(grouped: Grouped, files: Sequence[FileSaid], first: int) -> Markup | None:
    """FFN widths and heads that each plan keeps. Figures are numbered from ``first`` on."""
    plans: dict[Any, list[Planned]] = {}
    for file in files:
        for each in file.reading.plans:
            # A model before and after its training, and a plan that lies beside its checkpoint, have the same widths.
            plans.setdefault(
                (each.plan.source, tuple((keep.index, keep.shape) for keep in each.plan.layers)), []
            ).append(each)
    if not plans:
        return None
    shown = list(plans.values())[:_MOST_PICTURES]
    made = []
    for number, found in enumerate(shown, start=first):
        plan = found[0].plan
        name = " and ".join(dict.fromkeys(called(each.subject, grouped) for each in found))
        title = f"FFN width and query heads of every layer that {name} keeps, in front of the dense model's"
        with page_style():
            picture = svg(widths_figure(plan, (BAR, FFN, HEADS)), number, title)
        dropped = plan.dropped_layers
        said = f"Layers that are gone: {', '.join(map(str, dropped))}." if dropped else "No layer is gone."
        made.append(
            element(
                "div",
                element("h3", name),
                element(
                    "figure", scrolling(f"Widths of {name}", picture), element("figcaption", said), class_="picture"
                ),
                class_="keep",
            )
        )
    more = len(plans) - len(shown)
    note = element("p", f"{more} more plans are not drawn.") if more else None
    return section("widths", "What each plan keeps", *made, note)


def every_figure(grouped: Grouped, decision: Decision, prices: Prices | None) -> Markup:
    """All figures, in a table for each set-up, and where those of the first table come from."""
    parts = []
    for name, title in (
        (QUALITY, "Quality, by text"),
        (_SERVICE, "Your records and request logs"),
        (_SPEED, "Time and memory, by machine and load"),
        (_ENERGY, "Energy, by machine and load"),
    ):
        tables = _by_setup(name, grouped)
        parts += [element("h3", title), *tables] if tables else []
    sizes = [each for metric in _SIZE for each in columns(metric, grouped) if each.known()]
    if sizes:
        lines = [f"{each.title}: {each.setup}" for each in sizes if each.setup]
        parts += [element("h3", "Size"), figure_table("Size", grouped.rows, sizes, "; ".join(lines) or None)]
    parts += _costs(grouped, decision, prices)
    return section(
        "figures",
        "Every figure",
        *parts,
        element("h3", "Where the figures of the first table come from"),
        sources_table(grouped.rows, decision.shown),
    )


def _by_setup(metrics: Sequence[str], grouped: Grouped) -> list[Markup]:
    tables: dict[str, list[Column]] = {}
    for metric in metrics:
        for each in columns(metric, grouped):
            if each.known() or any(figure.status == "contradictory" for figure in each.figures):
                tables.setdefault(each.setup, []).append(each)
    return [figure_table(setup or "figures", grouped.rows, found, setup or None) for setup, found in tables.items()]


def _costs(grouped: Grouped, decision: Decision, prices: Prices | None) -> list[Markup]:
    if prices is None:
        return []
    told = ", ".join(f"{name} {value:g}" for name, value in prices.to_dict().items())
    lacks = f" Left out: {prices.left_out}." if prices.left_out else ""
    parts = [element("h3", "Cost"), element("p", f"By the prices that were given: {told}.{lacks}")]
    found = cost_columns(grouped)
    if found:
        setups = dict.fromkeys(each.setup for each in found)
        for setup in setups:
            same = [each for each in found if each.setup == setup]
            parts.append(figure_table("Cost", grouped.rows, same, setup or None))
    if decision.cost.known() and len(prices.utilisations) > 1:
        parts.append(_uses(grouped, decision.cost, prices))
    return parts


def _uses(grouped: Grouped, cost: Column, prices: Prices) -> Markup:
    write = METRICS[cost.metric].write
    shares = uses(cost, prices)
    body = [
        element(
            "tr",
            element("th", row.letter, scope="row"),
            *(element("td", "–" if (value := each.dollars[place]) is None else f"≈ {write(value)}") for each in shares),
        )
        for place, row in enumerate(grouped.rows)
        if any(each.dollars[place] is not None for each in shares)
    ]
    heads = [heading("Model"), *(heading(f"{each.utilisation:.0%} used", "$/M tokens") for each in shares)]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *body))
    return joined(
        element("p", "What a million output tokens cost where a smaller share of each hour is used:"),
        scrolling("Cost by use", table),
    )
