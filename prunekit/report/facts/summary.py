"""The one sentence above the table, and the verdict of each row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prunekit.evaluation.verdict import COSTS, FINE, WORDS
from prunekit.report.facts.claims import ACCEPTANCE, CONTRADICTORY, NOT_MEASURED, WATCH, Judged
from prunekit.report.facts.metrics import METRICS
from prunekit.report.facts.rows import Grouped, Row
from prunekit.report.facts.tables import ELSEWHERE, Decision

if TYPE_CHECKING:
    from prunekit.profiling.prices import Prices


def verdict_of(row: Row) -> Judged | None:
    """The worst of what files say of it."""
    return max(row.verdicts, key=lambda each: WORDS.index(each.word), default=None)


def summary(grouped: Grouped, decision: Decision) -> str:
    """What the table comes to, in one sentence that names no more than it shows, and one on what was proved."""
    return " ".join((_judged(grouped, decision), *_proved(grouped)))


def _proved(grouped: Grouped) -> Iterator[str]:
    """What acceptance tests and watches came to, where they came to something."""
    told = []
    for row in grouped.rows:
        for each in row.proofs:
            if each.kind == ACCEPTANCE:
                told.append(f"the acceptance test of {_named(row)} came to: {each.word}")
            elif each.kind == WATCH:
                told.append(f"the watch of {_named(row)} says: {each.word}")
    if told:
        words = "; ".join(told)
        yield f"{words[:1].upper()}{words[1:]}."


def _judged(grouped: Grouped, decision: Decision) -> str:
    others = [row for row in grouped.rows if not row.is_baseline]
    if not others:
        return "These files speak of no model but the dense one, so there is nothing to decide yet."
    judged = [(row, found) for row in others if (found := verdict_of(row)) is not None]
    if not judged:
        return (
            "No file says how good any smaller model is, so the table below shows what would be gained and not what it "
            "costs; run prunekit eval on your own text."
        )
    unjudged = len(others) - len(judged)
    of_judged = f" ({unjudged} of {len(others)} were not judged)" if unjudged else ""
    fine = [row for row, found in judged if found.word == FINE]
    if fine:
        row = _smallest(fine, grouped, decision)
        which = (
            f"the only model found fine{of_judged}"
            if len(fine) == 1
            else f"the smallest of the {len(fine)} models found fine{of_judged}"
        )
        return f"{_named(row)} is {which} on {_text(row)}: {_figures(row, grouped, decision)}."
    costly = [row for row, found in judged if found.word == COSTS]
    # Those whose loss is in the table can be compared.
    costly = [row for row in costly if _loss(row, grouped, decision) < math.inf] or costly
    if costly:
        row = min(costly, key=lambda each: _loss(each, grouped, decision))
        return (
            f"No smaller model was found fine{of_judged}: the nearest to the dense one, {_named(row)}, costs quality "
            f"on {_text(row)}: {_figures(row, grouped, decision)}."
        )
    return (
        f"Every smaller model that was judged is broken{of_judged}; keep the dense one, prune less, or train what was "
        "pruned."
    )


def _named(row: Row) -> str:
    return f"{row.title} (row {row.letter})"


def _text(row: Row) -> str:
    found = verdict_of(row)
    return found.text.partition(",")[0] if found and found.text else "the text that was measured"


def _figures(row: Row, grouped: Grouped, decision: Decision) -> str:
    place = grouped.rows.index(row)
    loss = decision.quality.figures[place]
    parts = []
    if loss.value is not None:
        bounds = ""
        if loss.low is not None and loss.high is not None:
            bounds = f" (95 % interval {_short(loss.low)} to {_short(loss.high)})"
        text = decision.quality.setup.partition(",")[0]
        where = f" on {text}" if text else ""
        moves, by = ("rises", loss.value) if loss.value >= 0 else ("falls", -loss.value)
        parts.append(f"the loss {moves} by {_short(by)} nats a token{where}{bounds}, {loss.status}")
    for column, words in ((decision.ttft_ratio, "the first token"), (decision.tpot_ratio, "each further token")):
        figure = column.figures[place]
        if figure.value is not None:
            unsure = figure.low is not None and figure.high is not None and figure.low <= 1 <= figure.high
            gain = " (no gain shown: the runs spread too far)" if unsure else ""
            told = figure.status if figure.believed else f"{figure.status}, but not to be believed"
            parts.append(f"{words} takes {_short(figure.value)} of the dense model's time{gain}, {told}")
    size = _file_ratio(place, grouped, decision)
    if size is not None:
        parts.append(f"its files are {size:.2f} of the dense model's size")
    return "; ".join(parts) or "no figure of it is in the table"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1e}"


def _file_ratio(place: int, grouped: Grouped, decision: Decision) -> float | None:
    figures = decision.file_bytes.figures
    dense = next((each.value for row, each in zip(grouped.rows, figures, strict=True) if row.letter == "dense"), None)
    value = figures[place].value
    return value / dense if dense and value is not None else None


def _smallest(rows: list[Row], grouped: Grouped, decision: Decision) -> Row:
    """By the sizes of their files where all have one, else by parameters."""
    sizes = [decision.file_bytes.figures[grouped.rows.index(row)].value for row in rows]
    if any(size is None for size in sizes):
        sizes = [_parameters(row) for row in rows]
    return min(zip(sizes, rows, strict=True), key=lambda each: each[0] or math.inf)[1]


def _parameters(row: Row) -> float:
    return max((each.figure.value or 0 for each in row.claims if each.metric == "parameters"), default=math.inf)


def _loss(row: Row, grouped: Grouped, decision: Decision) -> float:
    value = decision.quality.figures[grouped.rows.index(row)].value
    return math.inf if value is None else value


def not_measured(grouped: Grouped, decision: Decision, told: Iterable[str], prices: Prices | None = None) -> list[str]:
    """What no file says, in sentences: of whole columns, of single rows, and what the files say themselves; and what
    the ``prices`` leave out."""
    found = []
    for column in decision.shown:
        times, title = decision.times.get(column.metric), METRICS[column.metric].title
        timed = {
            row.letter
            for place, row in enumerate(grouped.rows)
            if times is not None
            and times.figures[place].value is not None
            and column.figures[place].status == NOT_MEASURED
            and column.figures[place].how != ELSEWHERE
        }
        unknown = [
            row.letter
            for row, figure in zip(grouped.rows, column.figures, strict=True)
            if figure.value is None
            and figure.status != CONTRADICTORY
            and figure.how != ELSEWHERE
            and row.letter not in timed
        ]
        alone = [row.letter for row in grouped.rows if row.letter in timed and not row.dense]
        if alone:
            found.append(f"{title}, against the dense model's: of {', '.join(alone)}, which was timed alone. {_ALONE}")
        if len(unknown) == len(grouped.rows):
            found.append(f"{title}: of no model. {_how(column.metric, prices)}".strip())
        elif unknown:
            found.append(f"{title}: of {', '.join(unknown)}.")
    unjudged = [row.letter for row in grouped.rows if not row.is_baseline and verdict_of(row) is None]
    if unjudged:
        found.append(f"Verdict: of {', '.join(unjudged)}.")
    return list(dict.fromkeys((*found, *told)))


def _how(metric: str, prices: Prices | None) -> str:
    """What measures it."""
    if metric == "dollars_per_million" and prices is not None:
        if prices.dollars_an_hour is None:
            return f"Of the prices, {prices.left_out}."
        return "It needs output tokens a second of a bench or a load test."
    return _HOW.get(metric, "")


_TIMED = "prunekit bench MODEL --baseline DENSE measures it, and so does bench.py of the exports of both on a device."
_ALONE = "bench.py of the dense model's export in the same form, on the same device, gives what to compare it with."
_HOW = {
    "loss_added": "prunekit eval MODEL --baseline DENSE --text held-out.jsonl measures it.",
    "ttft_ratio": _TIMED,
    "tpot_ratio": _TIMED,
    "tokens_per_second": "prunekit bench, or a load test of the server, measures it.",
    "peak_bytes": "prunekit bench measures it.",
    "joules_per_token": "It needs a sensor of power, or watts in the prices.",
    "dollars_per_million": "It needs --prices, and output tokens a second of a bench or a load test.",
}
