"""``prunekit recover``: train a pruned model back toward the one it was pruned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.asked import split_settings
from prunekit.cli.checking import check_asked, checked, then_checked
from prunekit.cli.common import app, console, note
from prunekit.cli.launch import on_all_ranks
from prunekit.cli.long_command import long
from prunekit.cli.tables.recovery import curve_table
from prunekit.cli.telling import say, training_listener
from prunekit.plan.knobs import split_setting
from prunekit.plan.training import training_knobs


def complete_training(incomplete: str) -> list[str]:
    return [f"{name}=" for name in training_knobs() if name.startswith(incomplete)]


@app.command()
@on_all_ranks
@long
def recover(
    model: Annotated[str, typer.Argument(help="The pruned model: a local folder or a hub id.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder.")],
    teacher: Annotated[
        str, typer.Option(help="The dense model that it was pruned from, which it learns from.", show_default=False)
    ],
    text: Annotated[
        str | None,
        typer.Option(
            help=o.TRAINING_TEXT,
            show_default="builtin:0.5,self:0.5",
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help=f"{o.TOKENS} (500000, 10M); or say --minutes.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help=f"{o.MINUTES}, at the speed of three trial steps.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            autocompletion=complete_training,
            metavar="KEY=VALUE",
            help="Any other setting: learning_rate=2e-4 and the like; repeatable. docs/recovery.md lists them.",
            show_default=False,
        ),
    ] = None,
    seed: o.Seed = 0,
    check: o.Check = "builtin",
    max_loss_added: o.MaxLossAdded = None,
    checkpoint_minutes: Annotated[float, typer.Option(help=f"{o.CHECKPOINT_MINUTES}.")] = 10.0,
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
            help=f"{o.TENSORBOARD}.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object instead of tables: one for each step, and one at the end."),
    ] = False,
) -> None:
    """Train a pruned model back toward its dense one. The same command goes on where an interrupted one stopped."""
    from prunekit import pipeline

    check_asked(check, max_loss_added)
    others, told = split_settings(settings, training_knobs())
    # Of an unknown one, training_of says what there is.
    with then_checked(check):
        made = pipeline.recover(
            model,
            teacher,
            output,
            text=text,
            tokens=tokens,
            minutes=minutes,
            settings={**told, **dict(map(split_setting, others))},
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
            listener=training_listener(json),
        )
        if not json:
            console().print(curve_table(made))
            if not made.used:
                note(
                    "No step had a lower loss on held-out text than what was given, so the weights are those that were "
                    "given."
                )
            console().print(f"Checkpoint written to {output} ({made.written.architecture}).")
        looks = {"dtype": dtype, "device": device, "baseline_revision": teacher_revision}
        seen, code = checked(output, teacher, check, max_loss_added, show=not json, **looks)
    if json:
        said = {"checkpoint": str(output), "recovery": made.facts}
        say(said if seen is None else {**said, "check": seen})
    if code:
        raise typer.Exit(code)
