"""Verdicts on models, and what two models write side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from prunekit.cli.common import console
from prunekit.evaluation.verdict import SCALE
from prunekit.utils.names import printable

if TYPE_CHECKING:
    from prunekit.evaluation.check import Checked
    from prunekit.evaluation.continuations import Example
    from prunekit.evaluation.measured import Measured


def show_check(name: str, found: Checked) -> None:
    """What was seen of a model called ``name`` that was just made."""
    out = console()
    if found.examples:
        out.print(example_table([(name, found.examples)]))
    if found.verdict is not None:
        out.print(found.verdict.sentence)
        out.print(f"{SCALE} Checked on {found.tokens:,} tokens in {found.seconds:.0f} s.")
    elif found.works:
        out.print(f"Not checked: {found.why}")
    else:
        out.print(f"Broken: {found.why}")


def show_verdicts(models: Sequence[Measured]) -> None:
    """What they wrote side by side, where they did; a line for each that was measured beside a baseline, and the
    scale."""
    out = console()
    if shown := [(each.model, each.examples) for each in models if each.examples]:
        out.print(example_table(shown))
    if any(each.worst for each in models):
        count = sum(len(each.worst) for each in models)
        what = "beginning" if count == 1 else "beginnings"
        out.print(
            f"In the JSON: the {count} {what} with the largest KL, and what both models write there. prunekit report "
            "--show-texts shows them."
        )
    found = [(each.model, each.verdict.sentence) for each in models if each.verdict is not None]
    broken = [(each.model, f"Broken: {each.broken}") for each in models if each.broken is not None]
    for name, sentence in (*found, *broken):
        out.print(f"{name}: {sentence}" if len(models) > 1 else sentence)
    if found:
        out.print(SCALE)


def example_table(written: Sequence[tuple[str, Sequence[Example]]]) -> Table:
    """What models of these names, and the dense one, went on with: a column each, a row a prompt."""
    first = written[0][1]
    dense = any(each.baseline is not None for each in first)
    made = Table(title="The same beginning, continued by each model (greedy)", title_justify="left", show_lines=True)
    for column in ("beginning", *(["dense model"] if dense else []), *(name for name, _ in written)):
        made.add_column(column, justify="left", ratio=1, overflow="fold")
    for place, example in enumerate(first):
        cells = [example.prompt, *([example.baseline or ""] if dense else [])]
        cells += [examples[place].model for _, examples in written]
        made.add_row(*map(_one_line, cells))
    return made


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
