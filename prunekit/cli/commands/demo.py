"""``prunekit demo``: the whole way on a real model, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json
from prunekit.cli.long_command import long
from prunekit.utils.files.atomic import check_output_folder
from prunekit.utils.files.replacing import DEMO, local
from prunekit.utils.names import readable


@app.command()
@long
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.")] = Path("demo-output"),
    blocks: o.Blocks = "0.8",
    calib: o.Calib = "builtin",
    text: Annotated[str, typer.Option(help=f"{o.TEXT}: to measure quality on, as for prunekit eval.")] = "builtin",
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Prune SmolLM2-135M-Instruct by Adapt-Pruner, load it in a new process, and compare it with the dense model."""
    check_output_folder(output, overwrite, kind=DEMO, inputs=local(calib, text))
    from prunekit.cli.demo import run

    report = run(output, blocks or "0.8", calib or "builtin", text, overwrite, quiet=json)
    if json:
        print_json(report.data)
    else:
        out = console()
        if out.is_terminal:
            from rich.markdown import Markdown

            out.print(Markdown(report.markdown))
        else:
            # Wrapped table rows would no longer be Markdown.
            print(readable(report.markdown))  # noqa: T201
        out.print(f"All of it is in {output}: checkpoint/, plan.json, widths.png, report.md, report.json.")
