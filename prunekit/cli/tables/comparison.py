"""The tables of ``prunekit eval`` for several models: of each text and of the benchmarks one, beside the baseline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.cli.common import console, table
from prunekit.cli.tables.evaluation import GREEDY, fluency_cells, follow_cells, plus_minus, tasks_head, tell_trainings
from prunekit.cli.tables.verdicts import show_verdicts

if TYPE_CHECKING:
    from prunekit.evaluation.measured import Comparison
    from prunekit.evaluation.tasks.task_types import TaskReport, TaskScore


def show_all(compared: Comparison) -> None:
    """Print what was measured of all models. Of those that are broken there is nothing but that."""
    everyone = compared.models
    compared = replace(compared, models=tuple(each for each in everyone if each.broken is None))
    if not compared.models:
        show_verdicts(everyone)
        return
    first = compared.models[0]
    if first.texts is not None:
        for place in range(len(first.texts.results)):
            _print_text(compared, place)
    if first.generation:
        _print_generation(compared)
    if first.tasks is not None:
        _print_tasks([each.tasks for each in compared.models if each.tasks is not None])
    tell_trainings(compared.models)
    show_verdicts(everyone)


def _print_text(compared: Comparison, place: int) -> None:
    """The models on text number ``place``, a row each."""
    measured = [(each, each.texts.results[place]) for each in compared.models if each.texts is not None]
    of_baseline = compared.baseline is not None
    _, result = measured[0]
    computed = ", ".join(dict.fromkeys(f"{each.dtype} on {each.device}" for each, _ in measured))
    columns = ["model", "M params", "blocks", "perplexity"]
    caption = (
        "Blocks: what is left of the decoder blocks' parameters. Perplexity: e to the mean loss a token, lower is "
        "better; ± is one standard error."
    )
    if of_baseline:
        columns += ["loss added", "KL", "same top"]
        caption += (
            " Loss added: in nats a token. KL: how far the predictions moved, 0 is unmoved. Same top: how often both "
            "put the same token first."
        )
    how = f"{result.tokens_predicted:,} tokens, windows of {result.length} every {result.stride}"
    shown = table(f"{result.text} ({how}, {computed})", *columns, caption=caption)
    if of_baseline and result.baseline_perplexity is not None:
        size = _millions(compared.baseline_parameters or 0)
        shown.add_row(str(compared.baseline), size, "100.0%", f"{result.baseline_perplexity:,.2f}")
    for each, result in measured:
        share = "" if each.share_of_blocks is None else f"{each.share_of_blocks:.1%}"
        error = plus_minus(result.perplexity, result.nll_standard_error)
        row = [each.model, _millions(each.parameters), share, f"{result.perplexity:,.2f}{error}"]
        if of_baseline:
            row += [
                f"{result.nll_increase:+.3f}{plus_minus(1, result.nll_increase_standard_error, digits=3)}",
                f"{result.kl:.3f}",
                f"{result.agreement:.1%}",
            ]
        shown.add_row(*row)
    console().print(shown)


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f}"


def _print_generation(compared: Comparison) -> None:
    """What the models wrote after the prompts of each text, a row each."""
    first = compared.models[0].generation[0]
    columns = ["text", "model", "repeated", "distinct 1", "distinct 2", "length"]
    caption = GREEDY
    if compared.baseline is not None:
        columns += ["follows", "equal"]
        caption += " Follows: tokens before it first leaves the baseline's text. Equal: tokens the same in place."
    title = f"{first.prompts} prompts of {first.prompt_length} tokens, continued by up to {first.new_tokens}"
    shown = table(title, *columns, caption=caption)
    for place, quality in enumerate(compared.models[0].generation):
        if quality.baseline is not None:
            shown.add_row(quality.text, str(compared.baseline), *fluency_cells(quality.baseline))
        for each in compared.models:
            own = each.generation[place]
            shown.add_row(own.text, each.model, *fluency_cells(own.model), *follow_cells(own))
    console().print(shown)


def _print_tasks(reports: list[TaskReport]) -> None:
    """Scores, a column a model; differences to the baseline in brackets."""
    first = reports[0]
    of_baseline = first.baseline is not None
    head, caption = tasks_head(
        first, "In brackets: the difference to the baseline, its error from question to question."
    )
    columns = ["task", "questions", "shots", "metric", "chance", *([str(first.baseline)] if of_baseline else [])]
    columns += [report.model for report in reports]
    shown = table(head, *columns, caption=caption)
    # One that came out as no number for a model is missing from its report.
    found = [{(score.task, score.metric): score for score in report.scores} for report in reports]
    for score in first.shown:
        row = [
            "  " * score.level + score.task,
            f"{score.questions:,}",
            "" if score.few_shot is None else str(score.few_shot),
            score.metric,
            "" if score.chance is None else f"{score.chance:.3f}",
        ]
        if of_baseline:
            row.append("" if score.baseline is None else f"{score.baseline:.3f}")
        shown.add_row(*row, *(_task_cell(scores.get((score.task, score.metric))) for scores in found))
    out = console()
    out.print(shown)
    if first.left_out:
        out.print("Left out: " + "; ".join(f"{task} ({why})" for task, why in first.left_out.items()) + ".")
    for report in reports:
        if report.truncated:
            count = sum(report.truncated.values())
            out.print(
                f"{count:,} requests of {len(report.truncated)} tasks did not fit {report.model}; their beginning was "
                "cut off."
            )


def _task_cell(score: TaskScore | None) -> str:
    if score is None:
        return "–"
    said = f"{score.score:.3f}{plus_minus(1, score.standard_error, digits=3)}"
    if score.difference is None:
        return said
    return f"{said} ({score.difference:+.3f}{plus_minus(1, score.difference_standard_error, digits=3)})"
