"""``prunekit eval``: perplexity, and the distance from the model it was pruned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.common import Device, Dtype, Json, Model, app, console, deliver, table
from prunekit.errors import PrunekitError
from prunekit.files import check_output_file
from prunekit.provenance import model_label

if TYPE_CHECKING:
    from prunekit.evaluate import Evaluation


@app.command("eval")
def evaluate_command(
    model: Model,
    baseline: Annotated[str | None, typer.Option(help="The model it was pruned from, to compare with.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A text or .jsonl file, a dataset id, wikitext, or builtin (default; a part of it "
            "that no calibration sees). Repeatable."
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
    batch_size: Annotated[int, typer.Option(help="Windows computed at a time.")] = 4,
    field: Annotated[str, typer.Option(help="The JSONL field or dataset column that holds the text.")] = "text",
    split: Annotated[str, typer.Option(help="The split of a dataset.")] = "test",
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report here as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity, and KL divergence and agreement against the model it was pruned from."""
    from prunekit.evaluate import EvalConfig, evaluate, read_texts

    config = EvalConfig(length, stride, max_tokens, batch_size, field, split)
    if output is not None:
        check_output_file(output)

    from prunekit.calibration import check_length, check_tokens
    from prunekit.source import load_model, load_tokenizer, resolve

    source = resolve(model)
    dense_source = resolve(baseline) if baseline else None
    tokenizer = load_tokenizer(source)
    if dense_source is not None and load_tokenizer(dense_source).get_vocab() != tokenizer.get_vocab():
        raise PrunekitError(
            f"The tokenizers of {source.name} and {dense_source.name} differ, so their tokens can't be compared; "
            "give the model it was pruned from as --baseline."
        )
    # Before any weight is loaded: a mistyped file name should show at once.
    tokens = read_texts(text or ["builtin"], tokenizer, config)
    for each in filter(None, (source, dense_source)):
        check_length(config, each.config)
        for ids in tokens.values():
            check_tokens(ids, each.config)
    dense = None if dense_source is None else load_model(dense_source, dtype=dtype, device=device)
    report = evaluate(
        load_model(source, dtype=dtype, device=device),
        tokenizer,
        tokens,
        config,
        dense,
        name=model_label(source.name),
        baseline_name=model_label(dense_source.name) if dense_source else "baseline",
    )
    deliver(report.to_dict(), output, as_json, lambda: _print(report))


def _print(report: Evaluation) -> None:
    first = report.results[0]
    compared = report.baseline is not None
    how = f"windows of {first.length} every {first.stride} tokens, {report.dtype} on {report.device}"
    caption = "Perplexity: e to the mean loss a token, lower is better; ± is one standard error."
    columns = ["text", "tokens", "perplexity"]
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
            f"{result.perplexity:,.2f}{_error(result.perplexity, result.nll_standard_error)}",
        ]
        if compared:
            row += [
                f"{result.baseline_perplexity:,.2f}",
                f"{result.nll_increase:+.3f}{_error(1, result.nll_increase_standard_error, digits=3)}",
                f"{result.kl:.3f}",
                f"{result.agreement:.1%}",
            ]
        shown.add_row(*row)
    console().print(shown)


def _error(scale: float, error: float | None, digits: int = 2) -> str:
    """The standard error of ``scale`` times e to a loss is, to first order, ``scale`` times that of the loss."""
    return "" if error is None else f" ± {scale * error:,.{digits}f}"
