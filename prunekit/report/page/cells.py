"""Tables of figures: each cell tells whether it was measured, each column what it is of."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.report.facts.claims import (
    ACCEPTANCE,
    CHECKPOINT,
    CONTRADICTORY,
    ESTIMATED,
    EXACT,
    INTERVAL,
    NOT_MEASURED,
    WATCH,
    Figure,
    Subject,
)
from prunekit.report.facts.metrics import METRICS, RATIOS
from prunekit.report.facts.rows import Grouped, Row
from prunekit.report.facts.summary import verdict_of
from prunekit.report.facts.tables import ELSEWHERE, Column, Decision
from prunekit.report.page.markup import Markup, element, joined, scrolling

Notes = dict[str, dict[str, None]]
_BOUNDS = {"at least": "≥ ", "at most": "≤ "}
_PROOFS = {ACCEPTANCE: "acceptance", WATCH: "watch"}


def cell(figure: Figure, metric: str, also: str | None = None, note: int | None = None) -> Markup:
    """One figure: its value, its interval, ``also`` what belongs to it, its status in words, and the number of the
    ``note`` on its set-up."""
    shown = METRICS[metric]
    pointer = None if note is None else element("span", f"note {note}", class_="also")
    if figure.value is None:
        kind = "contradictory" if figure.status == CONTRADICTORY else "none"
        words = "other set-up, see below" if figure.how == ELSEWHERE else figure.status
        if also is not None and kind == "none":
            alone = element("span", "measured, not compared", class_="status measured")
            return element("td", also, alone, pointer)
        return element("td", element("span", words, class_=kind))
    bounds = None
    if figure.low is not None and figure.high is not None:
        of = None if figure.interval == INTERVAL else element("span", figure.interval, class_="also")
        said = element("span", f"{shown.write(figure.low)} to {shown.write(figure.high)}", class_="bounds")
        bounds = joined(said, of)
    if metric in RATIOS and figure.low is not None and figure.high is not None and figure.low <= 1 <= figure.high:
        also = f"{also}, no gain shown" if also else "no gain shown"
    sign = _BOUNDS.get(figure.bound, "≈ " if figure.status == ESTIMATED else "")
    return element(
        "td",
        f"{sign}{shown.write(figure.value)}",
        bounds,
        None if also is None else element("span", also, class_="also"),
        element("span", figure.status, class_=f"status {figure.status.split()[0]}"),
        None if figure.believed else element("span", "not to be believed", class_="status contradictory"),
        pointer,
        data_sort=f"{figure.value:.17g}",
    )


def heading(title: str, unit: str = "", first: bool = False) -> Markup:
    """The head of a column."""
    return element("th", title, element("span", unit, class_="unit") if unit else None, scope="col")


def column_head(column: Column) -> Markup:
    metric = METRICS[column.metric]
    return heading(metric.title, metric.unit)


def row_head(row: Row) -> Markup:
    """The head of a row: its letter, its name, and its form where it is an export."""
    form = None if row.form == CHECKPOINT else element("span", row.form, class_="unit")
    name = row.name if row.letter == row.name else f"{row.letter}: {row.name}"
    return element("th", name, form, scope="row")


def called(subject: Subject, grouped: Grouped) -> str:
    """A model as its row calls it."""
    row = grouped.row_of(subject)
    return subject.name if row is None else f"{row.letter}: {row.name}"


def figure_table(about: str, rows: Sequence[Row], columns: Sequence[Column], caption: str | None = None) -> Markup:
    """``columns`` beside each other, without the rows of which none says anything."""
    shown = [place for place in range(len(rows)) if any(each.figures[place].status != NOT_MEASURED for each in columns)]
    body = [
        element("tr", row_head(rows[place]), *(cell(each.figures[place], each.metric) for each in columns))
        for place in shown
    ]
    return joined(
        element("p", f"{caption}.", class_="legend") if caption else None,
        scrolling(
            about,
            element(
                "table",
                element("thead", element("tr", heading("Model"), *map(column_head, columns))),
                element("tbody", *body),
                class_="sortable",
            ),
        ),
    )


def words_table(about: str, heads: Sequence[str], rows: Sequence[Sequence[str]], hashes: Sequence[int] = ()) -> Markup:
    """A table of texts; the columns numbered in ``hashes`` hold digests."""
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(
                element("td", each, class_="hash" if place in hashes else None)
                for place, each in enumerate(row[1:], start=1)
            ),
        )
        for row in rows
    ]
    table = element(
        "table",
        element("thead", element("tr", *(heading(head) for head in heads))),
        element("tbody", *body),
        class_="words",
    )
    return scrolling(about, table)


def decision_table(rows: Sequence[Row], decision: Decision) -> Markup:
    """The first table: what each model costs and brings, and its verdict."""
    notes = _notes(decision)
    body = []
    for place, row in enumerate(rows):
        cells = [_decided(each, place, decision.times.get(each.metric), notes) for each in decision.shown]
        body.append(element("tr", row_head(row), *cells, _verdict(row)))
    heads = [heading("Model"), *map(column_head, decision.shown), heading("Verdict")]
    table = element(
        "table",
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        class_="sortable",
    )
    return joined(scrolling("Decision table", table), _columns_of(decision.shown), _noted(notes))


def _decided(column: Column, place: int, times: Column | None, notes: Notes) -> Markup:
    setup = column.elsewhere.get(place)
    if setup is not None:
        # Its time, where there is one, is of the other set-up.
        times = None
    elif column.figures[place].value is None and times is not None and times.figures[place].value is not None:
        setup = times.elsewhere.get(place)
    note = [*notes].index(setup) + 1 if setup in notes else None
    return cell(column.figures[place], column.metric, _also(times, place), note)


def _notes(decision: Decision) -> Notes:
    """The set-ups of figures that were filled in, in their order, each with what they are of."""
    found: Notes = {}
    for ratio in decision.shown:
        columns = [each for each in (ratio, decision.times.get(ratio.metric)) if each is not None]
        for column in columns:
            for place, setup in sorted(column.elsewhere.items()):
                said = f"{column.title}, {column.figures[place].status}"
                found.setdefault(setup, {})[said] = None
    return found


def _noted(notes: Notes) -> Markup | None:
    """The notes below the first table."""
    lines = [
        element(
            "li",
            element("strong", f"Note {number}, {'; '.join(what)}"),
            f": {setup or 'set-up not told'}. Not compared with the rest of the column.",
        )
        for number, (setup, what) in enumerate(notes.items(), start=1)
    ]
    return element("ul", *lines, class_="of") if lines else None


def _also(column: Column | None, place: int) -> str | None:
    figure = None if column is None else column.figures[place]
    if figure is None or figure.value is None or column is None:
        return None
    metric = METRICS[column.metric]
    return f"{metric.write(figure.value)} {metric.unit}"


def _verdict(row: Row) -> Markup:
    """Of the text, and below it of the user's records and of the watch."""
    more = [
        element("span", f"{_PROOFS[each.kind]}: {each.word}", class_="also fails" if each.passes is False else "also")
        for each in row.proofs
        if each.kind in _PROOFS
    ]
    if row.is_baseline:
        return element("td", "–", *more)
    found = verdict_of(row)
    if found is None:
        return element("td", element("span", NOT_MEASURED, class_="none"), *more)
    where = f"on {found.text.partition(',')[0]}" if found.text else ""
    return element(
        "td",
        element("span", found.word, class_="verdict"),
        element("span", where, class_="unit") if where else None,
        *more,
    )


def _columns_of(columns: Sequence[Column]) -> Markup:
    """Under which set-up each column was measured: those of one set-up in one line."""
    titles: dict[str, list[str]] = {}
    for each in columns:
        if each.setup and each.known():
            titles.setdefault(each.setup, []).append(each.title)
    lines = [element("li", element("strong", ", ".join(names)), f": {setup}.") for setup, names in titles.items()]
    return element("ul", *lines, class_="of") if lines else Markup("")


def sources_table(rows: Sequence[Row], columns: Sequence[Column]) -> Markup:
    """Where each figure of ``columns`` comes from."""
    lines = []
    for column in columns:
        for row, figure in zip(rows, column.figures, strict=True):
            if figure.files and figure.value is not None and (figure.how or figure.status != EXACT):
                lines.append(
                    (f"{row.letter}: {column.title}", figure.status, figure.how or "–", ", ".join(figure.files))
                )
    return words_table("Where the figures come from", ("Figure", "Status", "How", "File"), lines)
