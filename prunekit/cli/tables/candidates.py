"""The table of ``prunekit candidates``: a row a candidate, every figure marked by where it comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.cli.common import console, table
from prunekit.evaluation.verdict import SCALE

if TYPE_CHECKING:
    from prunekit.pipeline.candidates.figure import Figure
    from prunekit.pipeline.candidates.result import Candidates, Row

_NONE = "–"
_LEGEND = (
    "Measured; ± is half of the 95 % interval, by windows. – not measured. Loss added: nats a token against the dense "
    "model. Same top: how often both put the same token first. *: on the Pareto front, no other is both smaller and "
    "better."
)
_COSTS = (
    "Exact, but for what has ≈, which is predicted. Memory: file and KV cache of one user. KV: a token's cache. First "
    "and next: time to the first token and of each further one, as a share of the dense model's; in brackets how far "
    "earlier predictions were off, on one machine. Min: minutes to prune."
)


def show_candidates(made: Candidates) -> None:
    """Print the rows, their notes, and what was not measured."""
    out = console()
    said = made.evaluation
    room = "" if made.memory is None else f", {made.memory / 1e9:,.3g} GB for all"
    quality = table(
        f"Quality on {said['source']} ({said['tokens_predicted'] or 0:,} tokens, windows of {said['length']})",
        "",
        *("loss added", "KL", "same top", "perplexity", "verdict", ""),
        caption=_LEGEND,
    )
    costs = table(
        f"What each costs (KV cache of {made.context:,} tokens a user{room})",
        "",
        *("M params", "file MiB", "memory MiB", "KV KiB", "users", "first", "next", "min"),
        caption=_COSTS,
    )
    for shown in (quality, costs):
        # A figure that is cut off would be another one.
        for column in shown.columns:
            column.overflow = "fold"
    for row in made.rows:
        quality.add_row(*_quality(row))
        costs.add_row(*_costs(row))
    out.print(quality)
    out.print(costs)
    for row in made.rows:
        if row.advice:
            out.print(f"{row.name}: {row.advice}")
    for row in made.rows:
        # Rounded weights have the widths of the row above.
        for sentence in row.why if row.kind == "prune" else ():
            out.print(f"Why {row.name}: {sentence}")
    out.print(SCALE)
    for sentence in made.not_measured:
        out.print(f"Not measured: {sentence}")


def _quality(row: Row) -> list[str]:
    figures = row.figures
    return [
        row.name,
        _cell(figures["loss_added"], digits=3, sign="+"),
        _cell(figures["kl"], digits=3),
        _cell(figures["top1_agreement"], 0.01, 1, unit=" %"),
        _cell(replace(figures["perplexity"], low=None), digits=2),
        row.verdict or "",
        "*" if row.pareto else "",
    ]


def _costs(row: Row) -> list[str]:
    figures = row.figures
    return [
        row.name,
        _cell(figures["parameters"], 1e6, 1),
        _cell(figures["file_bytes"], 2**20, 1),
        _cell(figures["memory_bytes"], 2**20, 1),
        _cell(figures["kv_bytes_per_token"], 2**10, 1),
        _cell(figures["users"]),
        _cell(figures["ttft_ratio"], digits=2),
        _cell(figures["tpot_ratio"], digits=2),
        _cell(figures["prune_minutes"], digits=1),
    ]


def _cell(figure: Figure, unit_size: float = 1, digits: int = 0, *, sign: str = "", unit: str = "") -> str:
    if figure.value is None:
        return _NONE
    about = "≈" if figure.status == "predicted" else ""
    if figure.status == "predicted" and figure.low is not None and figure.high is not None:
        # With spaces, so that a narrow column breaks no number.
        ends = " to ".join(f"{each / unit_size:,.{digits}f}" for each in (figure.low, figure.high))
        return f"≈{figure.value / unit_size:{sign},.{digits}f} ({ends}){unit}"
    error = ""
    if figure.low is not None and figure.high is not None:
        error = f" ± {(figure.high - figure.low) / 2 / unit_size:,.{digits}f}"
    return f"{about}{figure.value / unit_size:{sign},.{digits}f}{error}{unit}"
