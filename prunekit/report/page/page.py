"""The whole page, from what the files say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.report.facts.claims import FileSaid
from prunekit.report.facts.rows import Grouped
from prunekit.report.facts.tables import Decision
from prunekit.report.page import background, parts
from prunekit.report.page.cells import decision_table
from prunekit.report.page.completions import side_by_side
from prunekit.report.page.markup import Markup, bullets, element, embedded, joined, section
from prunekit.report.page.proved import proved
from prunekit.report.page.style import CSS, SCRIPT, policy
from prunekit.utils.files.replacing import PAGE_MARK

if TYPE_CHECKING:
    from prunekit.profiling.prices import Prices

_TITLES = {
    "decision": "Decision",
    "proved": "Proved and watched",
    "tradeoff": "Trade-off",
    "widths": "Widths",
    "completions": "Completions",
    "why": "Why each layer",
    "parity": "Parity",
    "figures": "Every figure",
    "method": "Method",
    "missing": "Not measured",
}


def page(
    title: str,
    said: str,
    files: Sequence[FileSaid],
    grouped: Grouped,
    decision: Decision,
    *,
    prices: Prices | None,
    show_texts: bool,
    warnings: Sequence[str],
    unknown: Sequence[str],
    data: dict[str, Any],
    versions: str,
) -> str:
    """One page of HTML that needs nothing else."""
    made = {
        "decision": section(
            "decision",
            "Keep the dense model, or take a smaller one?",
            _legend(),
            decision_table(grouped.rows, decision),
        ),
        "proved": proved(grouped, files, show_texts),
        "tradeoff": parts.tradeoffs(grouped, decision),
        "widths": parts.widths(grouped, files, first=10),
        "completions": side_by_side(grouped, files, show_texts),
        "why": background.reasons(files),
        "parity": background.parity(grouped, files),
        "figures": parts.every_figure(grouped, decision, prices),
        "method": background.method(grouped, files, versions),
        "missing": section(
            "missing", "What was not measured", bullets([*unknown]) if unknown else element("p", "Nothing is missing.")
        ),
    }
    shown = {name: each for name, each in made.items() if each is not None}
    links = [element("li", element("a", _TITLES[name], href=f"#{name}")) for name in shown]
    body = joined(
        element("h1", title),
        element("p", said, class_="summary"),
        _warnings(warnings),
        element("nav", element("ul", *links), aria_label="Parts of this page"),
        element("main", *shown.values()),
        element("script", embedded(data), type="application/json", id="kpis"),
        element("script", Markup(SCRIPT)),
    )
    head = joined(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy()),
        element("meta", name="generator", content=PAGE_MARK),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(CSS)),
    )
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def _legend() -> Markup:
    return element(
        "p",
        "Small words say how each figure came about: measured, exact (counted), ≈ estimated (with prices or watts that "
        "were given, or from two runs that were not in turns), predicted, not measured. Ranges are intervals of 95 %, "
        "unless they say something else. "
        "Between p20 and p80 lie 60 % of the timed runs.",
        class_="legend",
    )


def _warnings(warnings: Sequence[str]) -> Markup | None:
    if not warnings:
        return None
    return element(
        "div",
        element("strong", "Read this first"),
        bullets([*warnings]),
        class_="warnings",
        role="note",
    )
