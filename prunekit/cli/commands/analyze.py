"""``prunekit analyze``: how much each layer matters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.asked import text_asked
from prunekit.cli.common import app, console, deliver, table
from prunekit.cli.launch import on_all_ranks
from prunekit.cli.long_command import long
from prunekit.cli.tables.plan import bar
from prunekit.report.pictures import check_different, check_picture, draw_importance
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local
from prunekit.utils.process.ranks import from_first

if TYPE_CHECKING:
    from prunekit.pruning.analysis import Analysis


@app.command()
@on_all_ranks
@long
def analyze(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a JSON file.")] = Path("analysis.json"),
    picture: Annotated[
        Path | None, typer.Option(help=f"{o.PICTURE}: .png or .svg.", show_default="beside the JSON")
    ] = None,
    overwrite: o.Overwrite = False,
    importance: Annotated[str, typer.Option(help="Unit importance; `prunekit methods` lists them.")] = "taylor",
    layer_importance: Annotated[str, typer.Option(help="Layer importance: cosine, euclidean, manhattan or loss.")] = (
        "cosine"
    ),
    calib: o.Calib = None,
    settings: o.Settings = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Show how much each layer matters, in plain words; nothing is changed."""
    config = text_asked(calib, settings)
    inputs = local(model, calib)
    drawn = picture or output.with_suffix(".png")

    def check() -> None:
        check_output_file(output, overwrite, what="report", inputs=inputs)
        check_picture(drawn, overwrite, inputs)
        check_different(output, drawn)

    from_first(check)
    from prunekit.models.source import resolve
    from prunekit.pruning.analysis import analyze as run

    source = resolve(model, revision=revision)
    result = run(source, config, importance=importance, layer_importance=layer_importance, dtype=dtype, device=device)

    def write() -> None:
        draw_importance([layer.importance for layer in result.layers], layer_importance, drawn, overwrite)
        deliver(result.to_dict(), output, json, lambda: _print(result, output, drawn), overwrite)

    from_first(write)


def _print(result: Analysis, output: Path, picture: Path) -> None:
    made = table(
        f"{result.model}: importance of its layers", "layer", "importance", "", "in words", caption=result.meaning
    )
    for column in made.columns[2:]:
        column.justify = "left"
    lowest = min(0.0, *(layer.importance for layer in result.layers))
    span = max(layer.importance for layer in result.layers) - lowest or 1.0
    for layer in result.layers:
        made.add_row(str(layer.index), f"{layer.importance:.4g}", bar((layer.importance - lowest) / span), layer.words)
    console().print(made)
    console().print(f"{result.summary} Written to {output} and {picture}.")
    console().print(
        "What one MB of weights is worth in each layer, what each would cost if it went, and which text pays most is "
        "not measured here: prunekit plan measures that for a target, and changes nothing either."
    )
