"""A report of what other commands found: one page of HTML, and its figures as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import Prices
from prunekit.report.facts.costs import priced
from prunekit.report.facts.exported import placed
from prunekit.report.facts.fields import clipped
from prunekit.report.facts.kpis import kpis
from prunekit.report.facts.ratios import set_beside
from prunekit.report.facts.rows import group
from prunekit.report.facts.runs import apart
from prunekit.report.facts.summary import not_measured, summary
from prunekit.report.facts.tables import contradictions, decide
from prunekit.report.readers.registry import read_files
from prunekit.utils.files.atomic import check_output_file, write_text
from prunekit.utils.files.replacing import local
from prunekit.utils.provenance import installed

TITLE = "Is the pruned model worth it?"
_ENDINGS = (".html", ".htm")


@dataclass(frozen=True)
class Report:
    """What was written: the ``page``, its figures as JSON in ``kpis``, and these figures as ``data``."""

    page: Path
    kpis: Path
    data: dict[str, Any]


def write_report(
    files: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    prices: str | Path | Prices | None = None,
    title: str = TITLE,
    show_texts: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write one page of HTML on what ``files`` say, as `prunekit report` does, and its figures as JSON beside it.

    ``files`` are JSON that prunekit's commands wrote or printed, folders of checkpoints and exports, and results of
    load tests; each is recognised by what is in it. ``prices`` is a TOML file (or :class:`Prices`). ``show_texts``
    shows beginnings of texts that may be private. The page needs no network, and of the same input it has the same
    bytes. Raises PrunekitError where a file is of no known kind or damaged, or the page can't be written.

    >>> write_report(["eval.json", "bench.json", "smaller/"], "report.html").data["summary"]  # doctest: +SKIP
    'smaller (row A) is the only model found fine on held-out.jsonl: ...'
    """
    page_file = Path(out)
    if page_file.suffix.lower() not in _ENDINGS:
        raise PrunekitError(f"A report is a page of HTML, so its name ends in .html, not {page_file.name!r}.")
    beside = page_file.with_suffix(".json")
    named = [files] if isinstance(files, str | Path) else [*files]
    paths = [Path(each).expanduser() for each in named]
    inputs = local(*map(str, paths), None if isinstance(prices, Prices) or prices is None else str(prices))
    for path, what in ((page_file, "page"), (beside, "kpis")):
        check_output_file(path, overwrite, what=what, inputs=inputs)
    known = Prices.load(prices) if isinstance(prices, str | Path) else prices
    read = placed(read_files(paths))
    grouped, runs = apart(group(read))
    grouped = priced(set_beside(grouped), known)
    decision = decide(grouped)
    conflicts = contradictions(grouped)
    told = [each for file in read for each in file.reading.not_measured]
    warned = [each for file in read for each in file.reading.warnings]
    unknown = not_measured(grouped, decision, told, known)
    against = list(dict.fromkeys((*runs, *conflicts)))
    warnings = list(dict.fromkeys((*grouped.warnings, *warned)))
    shown, said = clipped(title), summary(grouped, decision)
    data = kpis(shown, said, read, grouped, decision, known, unknown, against, warnings)

    from prunekit.report.page.page import page

    html = page(
        shown,
        said,
        read,
        grouped,
        decision,
        prices=known,
        show_texts=show_texts,
        warnings=list(dict.fromkeys((*against, *warnings))),
        unknown=unknown,
        data=data,
        versions=f"prunekit {installed('prunekit') or '(not installed)'}",
    )
    figures = json.dumps(data, indent=1, allow_nan=False) + "\n"
    new = not beside.exists()
    write_text(beside, figures, overwrite, what="kpis", inputs=inputs)
    try:
        write_text(page_file, html, overwrite, what="page", inputs=inputs)
    except PrunekitError:
        if new:
            beside.unlink(missing_ok=True)
        raise
    return Report(page_file, beside, data)
