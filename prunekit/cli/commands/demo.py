"""``prunekit demo``: the whole way on a real model, in minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.cli.long_command import long
from prunekit.cli.tables.decision import show_decision
from prunekit.utils.files.atomic import check_output_folder
from prunekit.utils.files.replacing import DEMO, local


@app.command()
@long
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.")] = Path("demo-output"),
    blocks: o.Blocks = "0.8",
    calib: o.Calib = None,
    text: Annotated[str, typer.Option(help=f"{o.TEXT}: to measure quality on, as for prunekit eval.")] = "builtin",
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Measure a size of SmolLM2-135M-Instruct before it is made, then prune, export, time, and write one page.

    The default method stands beside adapt-pruner. Every step is a command that you can give yourself; demo.json lists
    them with their seconds.
    """
    check_output_folder(output, overwrite, kind=DEMO, inputs=local(calib, text))
    from prunekit.cli.demo import run

    made = run(output, blocks or "0.8", calib, text, overwrite)
    if json:
        print_json({"page": str(made.report.page), **made.data, "report": made.report.data})
        return
    shown = table("What was done", "command", "seconds")
    shown.columns[0].overflow = "fold"
    for step in made.data["steps"]:
        shown.add_row(step["command"], f"{step['seconds']:,.0f}")
    console().print(shown)
    show_decision(made.report)
    console().print(f"Open {made.report.page} in a browser. All of it is in {output}.")
