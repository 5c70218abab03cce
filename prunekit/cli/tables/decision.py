"""What a report decides by, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit.cli.common import console, table

if TYPE_CHECKING:
    from prunekit.report.write import Report


def show_decision(made: Report) -> None:
    """The models with what decides, the page's sentence, and what to know before it is believed."""
    out = console()
    shown = table("Models", "", "", "loss added, nats", "first token", "further token", "MiB of files", "verdict")
    shown.columns[1].justify = "left"
    shown.columns[1].overflow = "fold"
    for row in made.data["rows"]:
        figures = row["decision"]
        verdict = "–" if row["row"] == "dense" else (row["verdict"] or {}).get("verdict", "not measured")
        name = row["name"] if row["form"] == "checkpoint" else f"{row['name']}, {row['form']}"
        cells = [_said(figures[key], unit) for key, unit in _COLUMNS]
        shown.add_row(row["row"], name, *cells, verdict)
    out.print(shown)
    out.print(made.data["summary"])
    for each in made.data["contradictions"]:
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


def _said(figure: dict[str, Any], form: str) -> str:
    """A figure and, unless it was measured or counted, its status."""
    if figure["value"] is None:
        return figure["status"]
    value = figure["value"] / 2**20 if form == "{:,.1f}" else figure["value"]
    told = form.format(value)
    return told if figure["status"] in ("measured", "exact") else f"{told} ({figure['status']})"
