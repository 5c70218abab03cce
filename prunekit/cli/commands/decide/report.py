"""``prunekit report``: one page of HTML that decides between the dense model and the smaller ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, print_json
from prunekit.cli.tables.decision import show_decision


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
        show_decision(made)
