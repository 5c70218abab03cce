"""``prunekit report``: one page of HTML that decides between the dense model and the smaller ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table

if TYPE_CHECKING:
    from prunekit.report.write import Report


@app.command("report")
def report_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="JSON of candidates, eval, bench, plan, analyze, prune --json and recover --json; folders of "
            "checkpoints and exports; results of vllm bench serve, AIPerf and guidellm. Each is recognised by what is "
            "in it.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a page of HTML. Its figures lie beside it as .json.")
    ] = Path("report.html"),
    prices: o.PricesFile = None,
    show_texts: Annotated[
        bool,
        typer.Option(
            "--show-texts",
            help="Also show beginnings of your own texts and what the models wrote, the worst first. Without it the "
            "page shows only those of public texts.",
        ),
    ] = False,
    title: Annotated[
        str, typer.Option(help="The title of the page.", show_default=False)
    ] = "Is the pruned model worth it?",
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Write one page that shows what each smaller model costs in quality and brings in size, time and money.

    The page needs no network and can be mailed. Every figure says whether it was measured, predicted or neither.
    """
    from prunekit.report.write import write_report

    made = write_report(files, output, prices=prices, title=title, show_texts=show_texts, overwrite=overwrite)
    if json:
        print_json({"page": str(made.page), **made.data})
    else:
        _print(made)


def _print(made: Report) -> None:
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
