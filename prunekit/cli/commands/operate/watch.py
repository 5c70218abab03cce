"""``prunekit watch init`` and ``prunekit watch run``: whether a deployed model is still good, from its request log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, note, print_json
from prunekit.cli.long_command import long
from prunekit.cli.tables.operate.watch import show_baseline, show_watch
from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    from prunekit.monitoring.scoring.scorer import Scorer

_ALARM = 3
Dense = Annotated[
    str | None,
    typer.Option(
        help="The model it was pruned from, to score the same tokens with: a folder, a hub id, or the address of a "
        "vLLM server that has it.",
        show_default=False,
    ),
]

group = typer.Typer(
    help="Watch a deployed model by its request log: what is normal, then whether it still is so.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(group, name="watch")


@group.command("init")
@long
def init_command(
    reference: Annotated[
        list[Path],
        typer.Option(
            "--reference",
            metavar="LOG",
            help="A healthy request log to learn what is normal from (.jsonl, .gz too); repeatable. Best whole weeks.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            help="The deployed model, for the signals that need it: a folder, a .gguf file, a hub id.",
            show_default=False,
        ),
    ] = None,
    dense: Dense = None,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a JSON file.")] = Path("base.json"),
    window: Annotated[int, typer.Option(help="Requests that are judged together.")] = 200,
    false_alarms: Annotated[float, typer.Option(help="False alarms a year that all signals together may give.")] = 1.0,
    requests_per_day: Annotated[
        float | None,
        typer.Option(help="Requests that are made a day (default: as the log's times tell).", show_default=False),
    ] = None,
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of answers rejected or escalated above which the dense model must take over (default: from "
            "the log's outcomes).",
            show_default=False,
        ),
    ] = None,
    max_rework_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of answers edited, rejected or escalated above which the dense model must take over (default: "
            "from the log's outcomes).",
            show_default=False,
        ),
    ] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Learn from a healthy request log what is normal, and set the limit of each signal.

    Limits come from the false alarms a year that you allow. What the set-up can find, and how late, is printed.
    """
    from prunekit.monitoring.baseline.make import watch_init
    from prunekit.monitoring.baseline.settings import WatchConfig

    config = WatchConfig(
        window=window,
        false_alarms=false_alarms,
        requests_per_day=requests_per_day,
        max_error_rate=max_error_rate,
        max_rework_rate=max_rework_rate,
    )
    scorer = _scorer(model, dense, dtype, device)
    if scorer is None:
        made = watch_init(reference, output, config=config, overwrite=overwrite)
    else:
        from prunekit.monitoring.scoring.make import signals_to_learn

        output = output.expanduser()
        with signals_to_learn(scorer, output, window=window, overwrite=overwrite) as (signals, names):
            made = watch_init(reference, output, config=config, signals=signals, models=names, overwrite=overwrite)
    if json:
        data = made.to_dict()
        print_json({key: value for key, value in data.items() if key != "reference"})
        return
    show_baseline(made, output)


@group.command("run")
@long
def run_command(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOG...", help="Request logs (.jsonl, .gz too), the oldest first.", show_default=False),
    ],
    baseline: Annotated[
        Path, typer.Option("--baseline", help="What prunekit watch init made of a healthy log.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder, in which the next run goes on.")
    ] = Path("watch"),
    deployed: Annotated[
        str | None,
        typer.Option(help="The deployed model, where the baseline was made with one.", show_default=False),
    ] = None,
    dense: Dense = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    once: Annotated[
        bool, typer.Option("--once", help="End where the logs end; without it, go on as they grow.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks at logs that grow.", min=0.1)] = 5.0,
    on_alarm: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Start this command once an alarm, without a shell, with the alarm as JSON on stdin.",
            show_default=False,
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Post alarms there, in the shape of Alertmanager's.", show_default=False),
    ] = None,
    prom: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write figures as a text file for Prometheus.", show_default=False),
    ] = None,
    cool_down: Annotated[
        float, typer.Option(help="Hours after an alarm in which none of its kind or a lesser one is told.", min=0)
    ] = 24.0,
    alarm_minutes: Annotated[float, typer.Option(help="Minutes after which the command of an alarm is ended.")] = 60.0,
    reset: Annotated[
        bool, typer.Option("--reset", help="Begin all sums anew, as after a repair; reading goes on where it stood.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Judge what is new in request logs: ok, notice, re-prune, investigate, or fall back to the dense model now.

    The exit code is 3 where an alarm is active or began. A stopped run goes on where it stood.
    """
    from prunekit.monitoring.running.run import TellConfig, watch_run

    scorer = _scorer(deployed, dense, dtype, device)
    signals = None
    if scorer is not None:
        from functools import partial

        from prunekit.monitoring.scoring.make import signals_to_watch

        signals = partial(signals_to_watch, scorer, baseline.expanduser())
    made = watch_run(
        logs,
        baseline,
        output,
        signals=signals,
        tell=TellConfig(on_alarm, webhook, prom, cool_down, alarm_minutes),
        follow=not once,
        every=every,
        reset=reset,
        note=note,
    )
    if json:
        print_json(made.data)
    else:
        show_watch(made, output)
    if made.alarm:
        raise typer.Exit(_ALARM)


def _scorer(model: str | None, dense: str | None, dtype: str, device: str) -> Scorer | None:
    """What scores requests; None where no model was named."""
    if model is None:
        if dense is not None:
            raise PrunekitError("The dense model is compared with the deployed one; name that too.")
        return None
    from prunekit.monitoring.scoring.make import make_scorer

    return make_scorer(model, dense, dtype=dtype, device=device)
