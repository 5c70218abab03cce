"""``prunekit eval``: perplexity, benchmarks, what it writes, and the distance from the model it was pruned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options as o
from prunekit.cli.checking import exit_code, limit_of, note_broken
from prunekit.cli.common import app, deliver
from prunekit.cli.long_command import long
from prunekit.cli.tables.comparison import show_all
from prunekit.cli.tables.evaluation import show
from prunekit.errors import PrunekitError
from prunekit.evaluation.verdict import BROKEN
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local


@app.command("eval")
@long
def evaluate_command(
    models: o.Models,
    baseline: Annotated[str | None, typer.Option(help=f"{o.BASELINE}.", show_default=False)] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{o.TEXT}: to measure quality on, {o.FILES}, a Hugging Face dataset id, "
            "wikitext, or builtin (default, unless --tasks is "
            "all that is asked for; a part of it that no calibration sees); repeatable."
        ),
    ] = None,
    length: Annotated[int, typer.Option(help=f"{o.LENGTH}: a window.")] = 512,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens between windows (default: --length). Smaller: only new tokens are scored.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Use at most so many tokens of each text.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help=f"{o.BATCH_SIZE}: windows, questions or prompts.")] = 4,
    field: Annotated[
        str, typer.Option(help="The field or column of the rows that holds the text or the chat.")
    ] = "text",
    split: Annotated[str, typer.Option(help="The split of a dataset.")] = "test",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Benchmarks of lm-evaluation-harness, such as mmlu,truthfulqa,agieval or any name that "
            "`lm-eval ls tasks` lists. What is done is kept: an interrupted run goes on.",
            show_default=False,
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of the benchmarks' JSONL files (default: the hub): mmlu_test, mmlu_dev, truthfulqa_mc, "
            "agieval/NAME.",
            show_default=False,
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(
            help="Examples before each question (default: 5 for MMLU, else as published). Tasks that fix their number "
            "or have no examples keep it.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask at most so many questions of each task.", show_default=False)
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate", help="Continue prompts from the text greedily: how repetitive, and how like the baseline's?"
        ),
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts taken from each text, with --generate.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help=f"{o.PROMPT_TOKENS}: with --generate.")] = 64,
    new_tokens: Annotated[int, typer.Option(help=f"{o.NEW_TOKENS}: with --generate, at most.")] = 64,
    max_loss_added: o.MaxLossAdded = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    baseline_revision: o.BaselineRevision = None,
    output: o.ReportFile = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Measure perplexity, benchmarks and generation, and the distance from the model it was pruned from.

    Of several models, such as a pruned one before and after its recovery, there is one table for all.
    """
    from prunekit.evaluation.continuations import ContinuationConfig
    from prunekit.evaluation.perplexity import EvalConfig
    from prunekit.evaluation.tasks.task_types import TasksConfig

    limit_of(max_loss_added)
    if max_loss_added is not None and baseline is None:
        raise PrunekitError("--max-loss-added is measured against the dense model; name it with --baseline.")
    if max_loss_added is not None and tasks is not None and not text and not generate:
        raise PrunekitError("--max-loss-added is measured on text; name one with --text.")
    config = EvalConfig(length, stride, max_tokens, batch_size, field, split)
    continuations = ContinuationConfig(prompts, prompt_tokens, new_tokens, batch_size)
    for name, value in (("--task-data", task_data), ("--few-shot", few_shot), ("--limit", limit)):
        if value is not None and tasks is None:
            raise PrunekitError(f"{name} is for benchmarks; name them with --tasks, or leave it out.")
    if output is not None:
        inputs = local(*models, baseline, task_data, *(text or ()))
        check_output_file(output, overwrite, what="report", inputs=inputs)
    asked = None
    if tasks is not None:
        named = tuple(dict.fromkeys(name.strip() for name in tasks.split(",")))
        asked = TasksConfig(named, task_data, few_shot, limit, batch_size)

    from prunekit.evaluation.run import compare

    compared = compare(
        models,
        baseline=baseline,
        texts=text or (["builtin"] if generate or asked is None else []),
        config=config,
        continuations=continuations if generate else None,
        glimpse=True,
        tasks=asked,
        dtype=dtype,
        device=device,
        revision=revision,
        baseline_revision=baseline_revision,
    )
    if len(models) > 1:
        deliver(compared.to_dict(), output, as_json, lambda: show_all(compared), overwrite)
    else:
        (measured,) = compared.models
        deliver(measured.to_dict(), output, as_json, lambda: show(measured), overwrite)
    found = [(each.model, each.verdict) for each in compared.models]
    for each in compared.models:
        if each.broken is not None or (each.verdict is not None and each.verdict.word == BROKEN):
            note_broken(each.model)
    code = exit_code([(name, None if made is None else made.loss_added) for name, made in found], max_loss_added)
    if code:
        raise typer.Exit(code)
