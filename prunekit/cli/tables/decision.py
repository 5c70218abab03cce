"""What a report decides by, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit.cli.common import console, table
from prunekit.report.facts.claims import NOT_MEASURED
from prunekit.report.facts.tables import ELSEWHERE

if TYPE_CHECKING:
    from prunekit.report.write import Report


def show_decision(made: Report) -> None:
    """The models with what decides, the page's sentence, and what to know before it is believed."""
    out = console()
    shown = table("Models", "", "", "loss added, nats", "first token", "further token", "MiB of files", "verdict")
    shown.columns[1].justify = "left"
    for each in shown.columns:
        each.overflow = "fold"
    for row in made.data["rows"]:
        figures = row["decision"]
        verdict = "–" if row["row"] == "dense" else (row["verdict"] or {}).get("verdict", "not measured")
        name = row["name"] if row["form"] == "checkpoint" else f"{row['name']}, {row['form']}"
        cells = [_said(figures[key], unit, figures.get(key.removesuffix("_ratio"))) for key, unit in _COLUMNS]
        shown.add_row(row["row"], name, *cells, verdict)
    out.print(shown)
    out.print(made.data["summary"])
    for each in (*made.data["contradictions"], *made.data["warnings"]):
        out.print(f"Note: {each}")
    if made.data["not_measured"]:
        out.print(f"Not measured: {len(made.data['not_measured'])} things, which the page lists.")
    out.print(f"Page written to {made.page}, its figures to {made.kpis}.")


_COLUMNS = (
    ("loss_added", "{:+.3f}"),
    ("ttft_ratio", "{:.3f} ×"),
    ("tpot_ratio", "{:.3f} ×"),
    ("file_bytes", "{:,.1f}"),
)


def _said(figure: dict[str, Any], form: str, time: dict[str, Any] | None) -> str:
    """A figure and, unless it was measured or counted, its status; whether it is to be believed. Where there is no
    ratio, the ``time`` that was measured alone."""
    if figure["value"] is None:
        if figure["status"] == NOT_MEASURED and figure["how"] == ELSEWHERE:
            return "other set-up"
        if figure["status"] == NOT_MEASURED and time is not None and time["value"] is not None:
            return _with_words(f"{1e3 * time['value']:,.1f} ms", ["not compared"], time)
        return str(figure["status"])
    value = figure["value"] / 2**20 if form == "{:,.1f}" else figure["value"]
    sure = figure["status"] in ("measured", "exact")
    return _with_words(form.format(value), [] if sure else [figure["status"]], figure)


def _with_words(told: str, words: list[str], figure: dict[str, Any]) -> str:
    return ", ".join((told, *words, *(["not believed"] if figure.get("believed") is False else [])))
