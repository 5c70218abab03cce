"""The tables of ``prunekit eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.cli.common import console, table
from prunekit.cli.tables.verdicts import show_verdicts

if TYPE_CHECKING:
    from prunekit.evaluation.continuations import Fluency, GenerationQuality
    from prunekit.evaluation.measured import Measured
    from prunekit.evaluation.perplexity import Evaluation
    from prunekit.evaluation.tasks.task_types import TaskReport, TaskScore

GREEDY = (
    "Greedy. Repeated: share of a continuation's 4-grams that it had before. Distinct: different tokens and pairs of "
    "tokens among all. ± is one standard error."
)


def show(measured: Measured) -> None:
    """Print what was measured."""
    if measured.texts is not None:
        _print_texts(measured.texts)
    if measured.generation:
        _print_generation(measured)
    if measured.tasks is not None:
        _print_tasks(measured.tasks)
    tell_trainings([measured])
    show_verdicts([measured])


def tell_trainings(models: Sequence[Measured]) -> None:
    """A line for each training that a model has behind it."""
    for measured in models:
        for training in measured.trainings:
            console().print(f"{measured.model} was trained on {training.words()}.")


def _print_texts(report: Evaluation) -> None:
    first = report.results[0]
    apart = first.bits_per_byte is not None
    compared = report.baseline is not None and not apart
    how = f"windows of {first.length} every {first.stride} tokens, {report.dtype} on {report.device}"
    caption = "Perplexity: e to the mean loss a token, lower is better; ± is one standard error."
    columns = ["text", "tokens", "perplexity"]
    if apart:
        caption += (
            " The two tokenizers give other tokens, so each model read the text with its own, and perplexities don't "
            "compare. Bits a byte do: lower is better."
        )
        columns += ["baseline", "bits a byte", "baseline"]
    if compared:
        caption += (
            " Loss added: in nats a token. KL: how far the predictions moved, 0 is unmoved. "
            "Same top: how often both put the same token first."
        )
        columns += ["baseline", "loss added", "KL", "same top"]
    shown = table(f"{report.model} ({how})", *columns, caption=caption)
    for result in report.results:
        row = [
            result.text,
            f"{result.tokens_predicted:,}",
            f"{result.perplexity:,.2f}{plus_minus(result.perplexity, result.nll_standard_error)}",
        ]
        if apart:
            row += [
                f"{result.baseline_perplexity:,.2f}",
                f"{result.bits_per_byte:.3f}",
                f"{result.baseline_bits_per_byte:.3f}",
            ]
        if compared:
            row += [
                f"{result.baseline_perplexity:,.2f}",
                f"{result.nll_increase:+.3f}{plus_minus(1, result.nll_increase_standard_error, digits=3)}",
                f"{result.kl:.3f}",
                f"{result.agreement:.1%}",
            ]
        shown.add_row(*row)
    console().print(shown)


def plus_minus(scale: float, error: float | None, digits: int = 2) -> str:
    """An error in a cell. That of ``scale`` times e to a loss is, to first order, ``scale`` times that of the loss."""
    return "" if error is None else f" ± {scale * error:,.{digits}f}"


def _print_generation(measured: Measured) -> None:
    first = measured.generation[0]
    compared = first.baseline is not None
    caption = GREEDY
    columns = ["text", "model", "repeated", "distinct 1", "distinct 2", "length"]
    if compared:
        caption += " Follows: tokens before it first leaves the baseline's text. Equal: tokens the same in place."
        columns += ["follows", "equal"]
    title = f"{first.prompts} prompts of {first.prompt_length} tokens, continued by up to {first.new_tokens}"
    shown = table(title, *columns, caption=caption)
    for quality in measured.generation:
        for name, fluency in ((measured.model, quality.model), (measured.baseline, quality.baseline)):
            if fluency is None:
                continue
            follows = follow_cells(quality) if fluency is quality.model else []
            shown.add_row(quality.text, str(name), *fluency_cells(fluency), *follows)
    console().print(shown)


def fluency_cells(fluency: Fluency) -> list[str]:
    """What one model wrote: repeated, distinct 1, distinct 2, length."""
    return [
        _share(fluency.repetition, fluency.repetition_standard_error),
        _share(fluency.distinct_1),
        _share(fluency.distinct_2),
        f"{fluency.length:.1f}",
    ]


def follow_cells(quality: GenerationQuality) -> list[str]:
    """How far a model follows the baseline; nothing where there is none."""
    if quality.common_prefix is None:
        return []
    return [
        f"{quality.common_prefix:.1f}{plus_minus(1, quality.common_prefix_standard_error, digits=1)}",
        _share(quality.equal_tokens, quality.equal_tokens_standard_error),
    ]


def tasks_head(report: TaskReport, difference: str) -> tuple[str, str]:
    """Harness and data for the title of a table of benchmarks, and its caption. ``difference`` says what stands beside
    scores where there is a baseline."""
    where = "the hub's data" if report.data == "hub" else f"data from {report.data}"
    asked = f", at most {report.limit} questions a task" if report.limit else ""
    caption = "± is one standard error. Chance: what picking choices at random scores."
    if report.baseline is not None:
        caption += f" {difference}"
    if len(report.shown) < len(report.scores):
        caption += " The single tasks of groups are in the JSON report (--json, -o)."
    return f"lm-eval {report.lm_eval}, {where}{asked}", caption


def _print_tasks(report: TaskReport) -> None:
    compared = report.baseline is not None
    head, caption = tasks_head(report, "Difference: to the baseline, its error from question to question.")
    columns = ["task", "questions", "shots", "metric", "score", "chance"]
    if compared:
        columns += ["baseline", "difference"]
    shown = table(f"{report.model}, {head}", *columns, caption=caption)
    for score in report.shown:
        shown.add_row(*_task_row(score, compared))
    out = console()
    out.print(shown)
    if report.left_out:
        out.print("Left out: " + "; ".join(f"{task} ({why})" for task, why in report.left_out.items()) + ".")
    if report.truncated:
        count = sum(report.truncated.values())
        out.print(f"{count:,} requests of {len(report.truncated)} tasks did not fit; their beginning was cut off.")


def _task_row(score: TaskScore, compared: bool) -> list[str]:
    row = [
        "  " * score.level + score.task,
        f"{score.questions:,}",
        "" if score.few_shot is None else str(score.few_shot),
        score.metric,
        f"{score.score:.3f}{plus_minus(1, score.standard_error, digits=3)}",
        "" if score.chance is None else f"{score.chance:.3f}",
    ]
    if compared:
        row += [
            "" if score.baseline is None else f"{score.baseline:.3f}",
            ""
            if score.difference is None
            else f"{score.difference:+.3f}{plus_minus(1, score.difference_standard_error, digits=3)}",
        ]
    return row


def _share(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if error is None else f"{value:.1%} ± {100 * error:.1f}"
