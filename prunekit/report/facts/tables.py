"""Figures in columns, each of which holds what may be compared: one metric under one set-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prunekit.report.facts.agree import resolved
from prunekit.report.facts.claims import (
    CHECKPOINT,
    CONTRADICTORY,
    ESTIMATED,
    EXACT,
    MEASURED,
    NOT_MEASURED,
    PREDICTED,
    Claim,
    Figure,
    missing,
)
from prunekit.report.facts.metrics import METRICS
from prunekit.report.facts.rows import Grouped, Row

_KNOWN = (MEASURED, EXACT, ESTIMATED, PREDICTED)
Key = tuple[str, int | None, str]
"""A set-up, the number of the model that figures are against, and the detail of checkpoints."""
ELSEWHERE = "told under another set-up, see below"


@dataclass(frozen=True)
class Column:
    """``figures`` of one ``metric``, one for each row. ``setup`` is what they have in common, in words, and by ``key``
    columns under one set-up are found. ``elsewhere`` are the set-ups of figures that were filled in from other columns,
    by the places of their rows: they are not compared with the rest."""

    metric: str
    setup: str
    figures: tuple[Figure, ...]
    key: Key = ("", None, "")
    elsewhere: Mapping[int, str] = field(default_factory=dict)

    def setup_of(self, place: int) -> str:
        """Under what the figure of that row was told."""
        return self.elsewhere.get(place, self.setup)

    @property
    def title(self) -> str:
        return METRICS[self.metric].title

    def known(self, *statuses: str) -> int:
        return sum(each.status in (statuses or _KNOWN) for each in self.figures)


def columns(metric: str, grouped: Grouped) -> list[Column]:
    """A column for each set-up in which ``metric`` was told, those first in which it is measured for most rows."""
    bases = {grouped.model[each.against] for row in grouped.rows for each in row.claims if each.against is not None}
    claims = [(row, each) for row in grouped.rows for each in row.claims if each.metric == metric]
    keys = dict.fromkeys(_key(each, grouped) for _, each in claims if each.form == CHECKPOINT)
    covered = {key[:2] for key in keys}
    others = dict.fromkeys(_key(each, grouped) for _, each in claims)
    keys |= {key: None for key in others if key[:2] not in covered}
    made = []
    for key in keys:
        setup, against, detail = key
        parts = [setup, f"checkpoints in {detail}" if detail else ""]
        if against is not None and len(bases) > 1:
            parts.append(f"against {next((row.name for row in grouped.rows if row.model == against), 'another model')}")
        words = ", ".join(filter(None, parts))
        made.append(Column(metric, words, tuple(_figure(row, metric, key, grouped) for row in grouped.rows), key))
    # sorted is stable: of equals, the first that was told.
    return sorted(made, key=lambda each: (-each.known(MEASURED), -each.known()))


def _key(claim: Claim, grouped: Grouped) -> Key:
    """Exports of one machine and load stand beside each other, whatever runs them: that is what their rows are."""
    against = None if claim.against is None else grouped.model[claim.against]
    return claim.setup, against, claim.detail if claim.form == CHECKPOINT else ""


def _figure(row: Row, metric: str, key: Key, grouped: Grouped) -> Figure:
    found = [
        each
        for each in row.claims
        if each.metric == metric and _key(each, grouped) == (key if each.form == CHECKPOINT else (*key[:2], ""))
    ]
    return resolved(found) if found else missing(_why(row, metric, grouped))


def _why(row: Row, metric: str, grouped: Grouped) -> str:
    told = [each.figure for each in row.claims if each.metric == metric]
    if any(each.status != NOT_MEASURED for each in told):
        return ELSEWHERE
    if told:
        return told[0].how or "no file says it"
    other = grouped.checkpoint_of(row)
    if row.form != CHECKPOINT and other is not None and any(each.metric == metric for each in other.claims):
        return f"measured of the checkpoint ({other.letter}), not of this export"
    return "no file says it"


def best(metrics: Sequence[str], grouped: Grouped) -> Column:
    """The column that says most of any of ``metrics``: measured for most rows, then estimated or known for most; of
    equals, the first. Without any, an empty one of the first metric."""
    found = [each for metric in metrics for each in columns(metric, grouped)]
    if not found:
        return Column(metrics[0], "", tuple(missing("no file says it") for _ in grouped.rows))
    dense = {place for place, row in enumerate(grouped.rows) if row.is_baseline}

    def compares(column: Column) -> bool:
        """With the dense model, which is what is to be decided."""
        return any(column.figures[place].value is not None for place in dense) and column.known() > 1

    def known(column: Column) -> tuple[int, int, int]:
        return column.known(MEASURED, EXACT), column.known(MEASURED, EXACT, ESTIMATED), column.known()

    return max(found, key=lambda each: (compares(each), *known(each)))


def beside(column: Column, metric: str, grouped: Grouped) -> Column | None:
    """The column of another ``metric`` under the set-up of ``column``; None where there is none. One of them may be
    against a model, such as a ratio, where the other one, such as a time, stands for itself."""
    setup, _, detail = column.key
    found = [each for each in columns(metric, grouped) if (each.key[0], each.key[2]) == (setup, detail)]
    return next((each for each in found if each.key == column.key), found[0] if found else None)


def with_predictions(column: Column, grouped: Grouped) -> Column:
    """``column``, with what was predicted under other set-ups where nothing was measured."""
    places = {place for place, each in enumerate(column.figures) if each.status not in (*_KNOWN, CONTRADICTORY)}
    return _filled(column, columns(column.metric, grouped), places, PREDICTED)


def _times(ratio: Column, metric: str, grouped: Grouped) -> Column | None:
    """Times under the set-up of ``ratio``; where a model has no ratio at all, its time wherever it was measured."""
    there = columns(metric, grouped)
    if not there:
        return None
    same = beside(ratio, metric, grouped)
    unknown = tuple(missing("no file says it") for _ in grouped.rows)
    column = same or Column(metric, ratio.setup, unknown, ratio.key)
    places = {
        place
        for place, (own, time) in enumerate(zip(ratio.figures, column.figures, strict=True))
        if own.value is None and own.how != ELSEWHERE and time.status not in (*_KNOWN, CONTRADICTORY)
    }
    return _filled(column, there, places, MEASURED)


def _filled(column: Column, others: Sequence[Column], places: set[int], status: str) -> Column:
    """``column`` with the first figure of ``status`` that another one has in each of ``places``."""
    figures, elsewhere = [*column.figures], dict(column.elsewhere)
    for place in sorted(places):
        found = [each for each in others if each.key != column.key and each.figures[place].status == status]
        if found:
            figures[place], elsewhere[place] = found[0].figures[place], found[0].setup
    return replace(column, figures=tuple(figures), elsewhere=elsewhere)


@dataclass(frozen=True)
class Decision:
    """The columns of the first table. ``ttft`` and ``tpot`` are times, which stand beside their ratios, or in their
    place where a model was not compared with the dense one."""

    quality: Column
    ttft_ratio: Column
    tpot_ratio: Column
    ttft: Column | None
    tpot: Column | None
    capacity: tuple[Column, ...]
    memory: Column
    file_bytes: Column
    energy: Column
    cost: Column
    service: tuple[Column, ...] = ()
    """What was proved of models in service: load within the SLO, wrong answers, rework that may be added."""

    @property
    def times(self) -> dict[str, Column]:
        """By the metrics of the columns that they stand in."""
        pairs = ((self.ttft_ratio, self.ttft), (self.tpot_ratio, self.tpot))
        return {ratio.metric: time for ratio, time in pairs if time is not None}

    @property
    def shown(self) -> tuple[Column, ...]:
        """In the order in which they stand."""
        return (
            self.quality,
            self.ttft_ratio,
            self.tpot_ratio,
            *self.capacity,
            *self.service,
            self.memory,
            self.file_bytes,
            self.energy,
            self.cost,
        )


def decide(grouped: Grouped) -> Decision:
    """What the first table shows of all that is known: one set-up for each column."""
    quality = best(["loss_added"], grouped)
    further = best(["tpot_ratio"], grouped)
    first = next(
        (each for each in columns("ttft_ratio", grouped) if each.key == further.key), best(["ttft_ratio"], grouped)
    )
    first, further = with_predictions(first, grouped), with_predictions(further, grouped)
    capacity = [best([name], grouped) for name in ("users", "tokens_per_second")]
    told = tuple(each for each in capacity if each.known()) or (capacity[1],)
    return Decision(
        quality,
        first,
        further,
        _times(first, "ttft", grouped),
        _times(further, "tpot", grouped),
        told,
        _memory(grouped),
        best(["file_bytes"], grouped),
        best(["joules_per_token"], grouped),
        _cost(grouped),
        _service(grouped),
    )


def _cost(grouped: Grouped) -> Column:
    """At the highest load within the SLO, where that compares two models: what a server costs that answers in time."""
    cost = beside(best(["slo_load"], grouped), "dollars_per_million", grouped)
    return cost if cost is not None and cost.known() > 1 else best(["dollars_per_million"], grouped)


def _service(grouped: Grouped) -> tuple[Column, ...]:
    """Columns that stand there only where a file tells of them. Rework is that at the load within the SLO."""
    load, wrong = (best([name], grouped) for name in ("slo_load", "error_rate"))
    rework = beside(load, "rework_allowed", grouped) or best(["rework_allowed"], grouped)
    return tuple(each for each in (load, wrong, rework) if each is not None and each.known())


def _memory(grouped: Grouped) -> Column:
    """What was measured, where it compares at least two models; else what is known of most."""
    peak = best(["peak_bytes"], grouped)
    return peak if peak.known() > 1 else best(["peak_bytes", "memory_bytes", "weight_bytes"], grouped)


def contradictions(grouped: Grouped) -> list[str]:
    """What files say against each other, in sentences."""
    found = []
    for metric in METRICS:
        for column in columns(metric, grouped):
            for row, figure in zip(grouped.rows, column.figures, strict=True):
                if figure.status == CONTRADICTORY:
                    where = f" ({column.setup})" if column.setup else ""
                    found.append(f"{column.title} of {row.title}{where}: {figure.how}. It is left out of the tables.")
    return found
