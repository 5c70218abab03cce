"""What was proved of each model at the server and on the user's own records, and what a watch of it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunekit.report.facts.claims import ACCEPTANCE, LOAD, WATCH, Case, FileSaid, Proof
from prunekit.report.facts.rows import Grouped
from prunekit.report.page.cells import words_table
from prunekit.report.page.markup import Markup, bullets, element, joined, section, verbatim

_TITLES = {LOAD: "Load at the server", ACCEPTANCE: "Acceptance on your records", WATCH: "Watch of request logs"}
_MOST_SHEETS = 40


def proved(grouped: Grouped, files: Sequence[FileSaid], show_texts: bool) -> Markup | None:
    """A part for each model that was load-tested, judged on records or watched; None where none was. Records and
    answers stand there only with ``show_texts``: they may be private."""
    parts = [part for title, proofs in _by_model(grouped, files) for part in _model(title, proofs, show_texts)]
    if not parts:
        return None
    note = (
        "A load test says what a server bears, an acceptance test whether answers to your records are still right, a "
        "watch whether requests and answers are still as they were at release."
    )
    return section("proved", "Proved and watched", element("p", note, class_="legend"), *parts)


def _by_model(grouped: Grouped, files: Sequence[FileSaid]) -> Iterator[tuple[str, list[Proof]]]:
    order = list(_TITLES)
    for row in grouped.rows:
        if row.proofs:
            title = row.title if row.letter == row.name else f"{row.letter}: {row.title}"
            yield title, sorted(row.proofs, key=lambda each: order.index(each.kind))
    unnamed = [each for file in files for each in file.reading.proofs if each.subject is None]
    if unnamed:
        yield "A model that the file does not name", unnamed


def _model(title: str, proofs: Sequence[Proof], show_texts: bool) -> Iterator[Markup]:
    yield element("h3", title)
    for each in proofs:
        yield _proof(each, show_texts)


def _proof(proof: Proof, show_texts: bool) -> Markup:
    kind = {True: "passes", False: "fails", None: "open"}[proof.passes]
    head = element(
        "p",
        element("strong", f"{_TITLES[proof.kind]}: "),
        element("span", proof.word, class_=f"verdict {kind}"),
        element("span", f" ({proof.file})", class_="soft"),
    )
    sheets = proof.sheets[:_MOST_SHEETS]
    more = len(proof.sheets) - len(sheets)
    return element(
        "div",
        head,
        bullets([*proof.reasons]) if proof.reasons else None,
        element("p", element("strong", "What to do: "), proof.do) if proof.do else None,
        *(
            joined(
                element("p", each.title, class_="legend"),
                words_table(f"{_TITLES[proof.kind]}: {each.title}", each.heads, each.rows),
            )
            for each in sheets
        ),
        element("p", f"{more} more tables are not shown.", class_="soft") if more else None,
        _cases(proof.cases, show_texts),
        class_="proof",
    )


def _cases(cases: Sequence[Case], show_texts: bool) -> Markup | None:
    """Records that went from right to wrong, with their texts where the file holds them."""
    if not cases:
        return None
    count = f"{len(cases)} {'record' if len(cases) == 1 else 'records'} that went from right to wrong"
    if not show_texts:
        left = "is" if len(cases) == 1 else "are"
        return element(
            "p", f"{count} {left} left out, because they may be private; --show-texts shows them.", class_="soft"
        )
    lacks = (
        "" if any(each.texts for each in cases) else " The file holds no texts: accept was run without --show-texts."
    )
    return joined(element("p", f"{count}, the heaviest first.{lacks}", class_="legend"), *map(_case, cases))


def _case(case: Case) -> Markup:
    rows = [
        element("tr", element("th", name, scope="row"), element("td", element("pre", verbatim(text.strip()))))
        for name, text in case.texts
    ]
    return element(
        "div",
        element("p", case.words),
        element("table", element("tbody", *rows), class_="words") if rows else None,
        class_="keep",
    )
