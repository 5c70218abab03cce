"""``prunekit eval``: perplexity, benchmarks, what it writes, and the distance from the model it was pruned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli.common import Device, Dtype, Json, Model, Overwrite, app, deliver
from prunekit.cli.tables.evaluation import show
from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import check_output_file
from prunekit.utils.files.replacing import local
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.evaluation.continuations import GenerationQuality
    from prunekit.evaluation.perplexity import Evaluation
    from prunekit.evaluation.task_types import PreparedTasks, TaskReport
    from prunekit.models.source import Source


@app.command("eval")
def evaluate_command(
    model: Model,
    baseline: Annotated[str | None, typer.Option(help="The model it was pruned from, to compare with.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A file of text, or of rows of texts or chats (.jsonl, .json, .csv, .tsv, .parquet; .gz too), a "
            "dataset id, wikitext, or builtin (default, unless --tasks is all that is "
            "asked for; a part of it that no calibration sees). Repeatable."
        ),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 512,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens between windows (default: --length). Smaller: only new tokens are scored.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Use at most so many tokens of each text.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows, questions or prompts computed at a time.")] = 4,
    field: Annotated[
        str,
        typer.Option(
            "--field", "--calib-field", help="The field or column of the rows that holds the text or the chat."
        ),
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
    prompts: Annotated[int, typer.Option(help="With --generate: prompts taken from each text.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="With --generate: tokens of a prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="With --generate: tokens to continue a prompt by.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report here as JSON.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure perplexity, benchmarks and generation, and the distance from the model it was pruned from."""
    from prunekit.evaluation.continuations import ContinuationConfig, check_room, generation_quality, pick_prompts
    from prunekit.evaluation.perplexity import EvalConfig, evaluate, read_texts

    config = EvalConfig(length, stride, max_tokens, batch_size, field, split)
    continuations = ContinuationConfig(prompts, prompt_tokens, new_tokens, batch_size)
    for name, value in (("--task-data", task_data), ("--few-shot", few_shot), ("--limit", limit)):
        if value is not None and tasks is None:
            raise PrunekitError(f"{name} is for benchmarks; name them with --tasks, or leave it out.")
    if output is not None:
        inputs = local(model, baseline, task_data, *(text or ()))
        check_output_file(output, overwrite, what="report", inputs=inputs)

    from prunekit.data.calibration import check_length, check_tokens
    from prunekit.data.sources import source_name
    from prunekit.evaluation.own_tokenizers import Read, evaluate_apart
    from prunekit.models.source import load_model, load_tokenizer, pick_device, pick_dtype, resolve
    from prunekit.models.tokenizer.same_tokens import first_difference

    # Before any weight is loaded: a mistyped name should show at once.
    prepared = None if tasks is None else _prepare(tasks, task_data, few_shot, limit, batch_size)
    source = resolve(model)
    dense_source = resolve(baseline) if baseline else None
    tokenizer = load_tokenizer(source)
    dense_tokenizer = None if dense_source is None else load_tokenizer(dense_source)
    # Each model reads text with its own tokenizer; token by token they are compared where that makes no difference.
    apart = dense_tokenizer is not None and first_difference(dense_tokenizer, tokenizer) is not None
    if apart and generate and dense_source is not None:
        raise PrunekitError(
            f"--generate compares texts token by token, and the tokenizers of {source.name} and {dense_source.name} "
            "differ; leave it out, or give the model it was pruned from as --baseline."
        )
    texts = text or (["builtin"] if generate or prepared is None else [])
    tokens = read_texts(texts, tokenizer, config)
    dense_tokens = read_texts(texts, dense_tokenizer, config) if apart else tokens
    for each, read in ((source, tokens), (dense_source, dense_tokens)):
        if each is None:
            continue
        if texts:
            check_length(config, each.config)
        if generate:
            check_room(each.config, model_label(each.name), continuations)
        for ids in read.values():
            check_tokens(ids, each.config)
    for name, ids in tokens.items() if generate else ():
        pick_prompts(ids, continuations, None, source_name(name))
    names = {
        "name": model_label(source.name),
        "baseline_name": model_label(dense_source.name) if dense_source else "baseline",
    }
    chosen_device, chosen_dtype = pick_device(device), pick_dtype(dtype) or source.dtype
    report: Evaluation | None = None
    qualities: list[GenerationQuality] = []
    loaded: dict[str, Any] = {}
    if texts:
        loaded = {each.name: load_model(each, dtype=dtype, device=device) for each in (source, dense_source) if each}
        pruned, dense = loaded[source.name], loaded[dense_source.name] if dense_source else None
        if apart:
            report = evaluate_apart(
                Read(pruned, tokenizer, tokens), Read(dense, dense_tokenizer, dense_tokens), config, **names
            )
        else:
            report = evaluate(pruned, tokenizer, tokens, config, dense, **names)
        if generate:
            qualities = [
                generation_quality(pruned, tokenizer, ids, continuations, dense, text=result.text, **names)
                for ids, result in zip(tokens.values(), report.results, strict=True)
            ]
    scored: TaskReport | None = None
    if prepared is not None:
        readers = {"name": tokenizer, "baseline_name": dense_tokenizer}
        scored = _score(prepared, source, dense_source, loaded, readers, dtype, device, names)
    data: dict[str, Any] = (
        report.to_dict()
        if report is not None
        else {
            "model": names["name"],
            "baseline": names["baseline_name"] if dense_source else None,
            "dtype": str(chosen_dtype).removeprefix("torch."),
            "device": str(chosen_device),
            "results": [],
        }
    )
    if generate:
        data["generation"] = [quality.to_dict() for quality in qualities]
    if scored is not None:
        data["tasks"] = scored.to_dict()
    deliver(data, output, as_json, lambda: show(report, qualities, scored, names), overwrite)


def _prepare(
    tasks: str, folder: Path | None, few_shot: int | None, limit: int | None, batch_size: int
) -> PreparedTasks:
    from prunekit.evaluation.task_types import TasksConfig
    from prunekit.evaluation.tasks import prepare_tasks

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",")))
    return prepare_tasks(TasksConfig(names, folder, few_shot, limit, batch_size))


def _score(
    prepared: PreparedTasks,
    source: Source,
    dense_source: Source | None,
    loaded: dict[str, Any],
    tokenizers: dict[str, Any],
    dtype: str,
    device: str,
    names: dict[str, str],
) -> TaskReport:
    from prunekit.evaluation.task_report import make_report
    from prunekit.evaluation.tasks import score_tasks
    from prunekit.models.source import load_model, pick_device, pick_dtype

    def results(each: Source, which: str) -> Any:
        return score_tasks(
            prepared,
            lambda: loaded.get(each.name) or load_model(each, dtype=dtype, device=device),
            tokenizers[which],
            name=names[which],
            identity={
                "weights": each.fingerprint,
                "dtype": str(pick_dtype(dtype) or each.dtype),
                "device": pick_device(device).type,
            },
        )

    own = results(source, "name")
    dense = None if dense_source is None else results(dense_source, "baseline_name")
    return make_report(prepared, own, dense, **names)
