"""``prunekit recover``: train a pruned model back toward the one it was pruned from."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, note
from prunekit.cli.tables.recovery import curve_table, estimate_line, row_line
from prunekit.plan.knobs import parse_value, split_setting
from prunekit.plan.training import training_knobs

if TYPE_CHECKING:
    from prunekit.recovery.training.progress import Estimate


def complete_training(incomplete: str) -> list[str]:
    return [f"{name}=" for name in training_knobs() if name.startswith(incomplete)]


@app.command()
def recover(
    model: Annotated[str, typer.Argument(help="The pruned model: a local folder or a hub id.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.")],
    teacher: Annotated[
        str, typer.Option(help="The dense model that it was pruned from, which it learns from.", show_default=False)
    ],
    text: Annotated[
        str | None,
        typer.Option(
            help=f"Text to train on: {o.FILES}, a Hugging Face dataset id (id:config), wikitext, builtin, self (what "
            "the dense model writes), or a mix such as notes.jsonl:0.5,self:0.5.",
            show_default="builtin:0.5,self:0.5",
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Train on so many tokens (500000, 10M); or say --minutes.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train for about so long, at the speed of three trial steps.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            autocompletion=complete_training,
            metavar="KEY=VALUE",
            help="Any other setting of the training, such as learning_rate=2e-4; repeatable. docs/recovery.md lists "
            "them.",
            show_default=False,
        ),
    ] = None,
    seed: o.Seed = 0,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Keep what is needed to go on so often, beside the output.")
    ] = 10.0,
    store_dtype: Annotated[str, typer.Option(help="Store weights in auto, float32, bfloat16 or float16.")] = "auto",
    max_shard: Annotated[str, typer.Option(help="Largest size of one weight file.")] = "2GiB",
    overwrite: o.Overwrite = False,
    dtype: Annotated[
        str,
        typer.Option(help=f"{o.DTYPE}: auto (bfloat16 products where they are fast), float32 or bfloat16."),
    ] = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    teacher_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the teacher on the hub.", show_default=False)
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write curves for TensorBoard there, while it trains (needs tensorboard).",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a step, and one at the end, instead of tables.")
    ] = False,
) -> None:
    """Train a pruned model back toward its dense one. The same command goes on where an interrupted one stopped."""
    from prunekit import pipeline
    from prunekit.recovery.training.progress import Listener

    def say(values: dict[str, Any]) -> None:
        print(json_module.dumps(values, allow_nan=False), flush=True)  # noqa: T201

    def estimated(estimate: Estimate) -> None:
        if json:
            say({"estimate": estimate.to_dict()})
        note(estimate_line(estimate))

    def row(values: dict[str, Any]) -> None:
        if json:
            say(values)
        elif (line := row_line(values)) is not None:
            note(line)

    made = pipeline.recover(
        model,
        teacher,
        output,
        text=text,
        tokens=tokens,
        minutes=minutes,
        settings=_settings(settings),
        seed=seed,
        store_dtype=store_dtype,
        max_shard=max_shard,
        checkpoint_minutes=checkpoint_minutes,
        overwrite=overwrite,
        dtype=dtype,
        device=device,
        revision=revision,
        teacher_revision=teacher_revision,
        tensorboard=tensorboard,
        listener=Listener(row=row, note=note, estimate=estimated),
    )
    if json:
        say({"checkpoint": str(output), "recovery": made.facts})
        return
    console().print(curve_table(made))
    if not made.used:
        note("No step came nearer to the dense model than what was given, so the weights are those that were given.")
    console().print(f"Checkpoint written to {output} ({made.written.architecture}).")


def _settings(told: list[str] | None) -> dict[str, Any]:
    """What --set says; of one setting the last word counts. Raises PrunekitError for unknown ones."""
    known = training_knobs()
    read: dict[str, Any] = {}
    for text in told or ():
        name, value = split_setting(text)
        # Of an unknown one, training_of says what there is.
        read[name] = parse_value(known[name], value) if name in known else value
    return read
