"""All figures of a report as JSON, each with its status and the files that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.report.facts.claims import CONTRADICTORY, NOT_MEASURED, FileSaid
from prunekit.report.facts.metrics import METRICS
from prunekit.report.facts.rows import Grouped, Row
from prunekit.report.facts.summary import verdict_of
from prunekit.report.facts.tables import Decision, columns

if TYPE_CHECKING:
    from prunekit.profiling.prices import Prices

FORMAT, VERSION = "prunekit-kpis", 1


def kpis(
    title: str,
    said: str,
    files: Sequence[FileSaid],
    grouped: Grouped,
    decision: Decision,
    prices: Prices | None,
    unknown: Sequence[str],
    conflicts: Sequence[str],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """JSON values only, and no clock time: of the same files and prices, the same. ``conflicts`` are sentences on what
    files say against each other, ``warnings`` all else that is to be known first."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "summary": said,
        "rows": [_row(place, row, grouped, decision) for place, row in enumerate(grouped.rows)],
        "proofs_of_no_row": [each.to_dict() for file in files for each in file.reading.proofs if each.subject is None],
        "contradictions": list(conflicts),
        "warnings": list(warnings),
        "not_measured": list(unknown),
        "prices": None if prices is None else prices.to_dict(),
        "files": [{"name": file.name, "kind": file.reading.kind, "sha256": file.sha256} for file in files],
    }


def _row(place: int, row: Row, grouped: Grouped, decision: Decision) -> dict[str, Any]:
    found = verdict_of(row)
    told = {}
    for metric in METRICS:
        under = [
            {"setup": column.setup, **column.figures[place].to_dict()}
            for column in columns(metric, grouped)
            if column.figures[place].status != NOT_MEASURED
        ]
        if under:
            told[metric] = under
    return {
        "row": row.letter,
        "name": row.name,
        "form": row.form,
        "dense": row.dense,
        "also_called": [name for name in row.names if name != row.name],
        "fingerprint": row.fingerprint,
        "plan_sha256": row.plan,
        "verdict": None if found is None else {"verdict": found.word, "text": found.text, "files": [found.file]},
        "proofs": [each.to_dict() for each in row.proofs],
        "decision": {
            column.metric: {"setup": column.setup_of(place), **column.figures[place].to_dict()}
            for column in (*decision.shown, *decision.times.values())
        },
        "figures": told,
        "contradictory": [
            metric for metric, under in told.items() if any(each["status"] == CONTRADICTORY for each in under)
        ],
    }
