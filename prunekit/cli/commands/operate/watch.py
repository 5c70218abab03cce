"""``prunekit watch init`` and ``prunekit watch run``: whether a deployed model is still good, from its request log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, note, print_json
from prunekit.cli.long_command import long
from prunekit.cli.tables.operate.watch import show_baseline, show_watch

_ALARM = 3

group = typer.Typer(
    help="Watch a deployed model by its request log: what is normal, then whether it still is so.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(group, name="watch")


_DEPLOYED = (
    "The deployed model: a Hugging Face hub id, a local model folder, a .gguf file, or the built-in name smollm2-135m. "
    "Adds how it reads prompts and answers"
)
Dense = Annotated[
    str | None,
    typer.Option(
        "--dense",
        metavar="MODEL|URL",
        help="The dense model that the deployed one was pruned from, or a vLLM server that has it. Adds how far the "
        "two differ on the log's own requests.",
        show_default=False,
    ),
]
DenseServedName = Annotated[
    str | None,
    typer.Option(help="What the server of the dense model calls it (default: the first it lists).", show_default=False),
]
DenseRevision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the dense model on the hub.", show_default=False)
]


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
    model: Annotated[str | None, typer.Argument(help=f"{_DEPLOYED}.", show_default=False)] = None,
    dense: Dense = None,
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a JSON file.")] = Path("base.json"),
    window: Annotated[int, typer.Option(help="Requests that are judged together.")] = 200,
    false_alarms: Annotated[float, typer.Option(help="False alarms a year that all signals together may give.")] = 1.0,
    requests_per_day: Annotated[
        float | None,
        typer.Option(help="Requests that are made a day (default: as the log's times tell).", show_default=False),
    ] = None,
    served_name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model in requests: of a log of several models, the one that is watched (default: all).",
            show_default=False,
        ),
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
    overwrite: o.Overwrite = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    dense_revision: DenseRevision = None,
    dense_served_name: DenseServedName = None,
    api_key_env: o.ApiKeyEnv = None,
    json: o.Json = False,
) -> None:
    """Learn from a healthy request log what is normal, and set the limit of each signal.

    Limits come from the false alarms a year that you allow. What the set-up can find, and how late, is printed.
    """
    from prunekit.monitoring.baseline.make import watch_init
    from prunekit.monitoring.baseline.settings import WatchConfig
    from prunekit.monitoring.baseline.stored import WHAT
    from prunekit.monitoring.running.models import signals_of
    from prunekit.utils.files.atomic import check_output_file

    config = WatchConfig(
        window=window,
        false_alarms=false_alarms,
        requests_per_day=requests_per_day,
        max_error_rate=max_error_rate,
        max_rework_rate=max_rework_rate,
        served_name=served_name,
    )
    check_output_file(output, overwrite, what=WHAT, inputs=reference)
    signals = signals_of(
        model,
        dense,
        output,
        window=window,
        device=device,
        dtype=dtype,
        revision=revision,
        dense_revision=dense_revision,
        dense_served_name=dense_served_name,
        api_key_env=api_key_env,
        must_answer=True,
        overwrite=overwrite,
    )
    named = {"model": model, "dense": None if dense is None or "://" in dense else dense}
    made = watch_init(
        reference,
        output,
        config=config,
        signals=signals,
        models={name: each for name, each in named.items() if each is not None},
        overwrite=overwrite,
    )
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
    model: Annotated[str | None, typer.Option("--model", help=f"{_DEPLOYED}.", show_default=False)] = None,
    dense: Dense = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"{o.OUTPUT}: a folder, in which the next run goes on.")
    ] = Path("watch"),
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
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    revision: o.Revision = None,
    dense_revision: DenseRevision = None,
    dense_served_name: DenseServedName = None,
    api_key_env: o.ApiKeyEnv = None,
    json: o.Json = False,
) -> None:
    """Judge what is new in request logs: ok, notice, re-prune, investigate, or fall back to the dense model now.

    The exit code is 3 where an alarm is active or began. A stopped run goes on where it stood.
    """
    from prunekit.monitoring.baseline.stored import Baseline
    from prunekit.monitoring.running.models import signals_of
    from prunekit.monitoring.running.run import TellConfig, watch_run
    from prunekit.monitoring.signals.protocol import ModelSignal

    def signals(base: Baseline) -> Sequence[ModelSignal]:
        if base.models and model is None:
            note("the baseline has signals of models, which are off: name the models with --model and --dense.")
        return signals_of(
            model,
            dense,
            baseline,
            window=base.config.window,
            device=device,
            dtype=dtype,
            revision=revision,
            dense_revision=dense_revision,
            dense_served_name=dense_served_name,
            api_key_env=api_key_env,
        )

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
