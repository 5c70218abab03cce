"""What stands behind the figures: why layers are as they are, parity of the exports, files, models and texts."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.report.facts.claims import FileSaid, Reason
from prunekit.report.facts.rows import Grouped
from prunekit.report.page.cells import words_table
from prunekit.report.page.markup import Markup, element, section

_MOST_REASONS = 400


def reasons(files: Sequence[FileSaid]) -> Markup | None:
    """Why each layer is as wide as it is, where a file says it."""
    # A plan, and the checkpoint that was made by it, say the same. Equal words of two plans are two reasons.
    said: dict[tuple[str, str, str], Reason] = {}
    for file in files:
        for each in file.reading.reasons:
            said.setdefault((each.plan or each.about, each.layer, each.words), each)
    found = list(said.values())
    if not found:
        return None
    rows = [(f"{each.about}, layer {each.layer}", each.words, each.file) for each in found[:_MOST_REASONS]]
    more = len(found) - len(rows)
    return section(
        "why",
        "Why each layer",
        words_table("Why each layer", ("Layer", "What the file says", "File"), rows),
        element("p", f"{more} more are not shown.") if more > 0 else None,
    )


def parity(grouped: Grouped, files: Sequence[FileSaid]) -> Markup | None:
    """How far each export is from PyTorch."""
    made = []
    for file in files:
        for each in file.reading.parity:
            row = grouped.row_of(each.subject, each.form)
            name = each.subject.name if row is None else f"{row.letter}: {row.title}"
            rows = [*each.rows] if each.verified else [("compared with PyTorch", "no")]
            made += [element("h3", name), words_table(f"Parity of {name}", ("", "Against the checkpoint"), rows)]
    return section("parity", "Do the exports compute the same?", *made) if made else None


def method(grouped: Grouped, files: Sequence[FileSaid], versions: str) -> Markup:
    """Of what all this is: files, models, texts, machines, versions."""
    listed = [(file.name, file.reading.kind, file.sha256) for file in files]
    models: dict[int, tuple[str, str, str, str]] = {}
    for row in grouped.rows:
        others = [name for name in row.names if name != row.name]
        called = f"{row.name} (also {', '.join(others)})" if others else row.name
        models.setdefault(row.model, (row.letter, called, row.fingerprint or "not told", row.plan or "–"))
    told: dict[tuple[str, str], list[str]] = {}
    for file in files:
        for fact in file.reading.facts:
            told.setdefault(fact, []).append(file.name)
    facts = [(title, words, ", ".join(dict.fromkeys(names))) for (title, words), names in told.items()]
    return section(
        "method",
        "Method and hashes",
        element(
            "p",
            "Loss added, KL and first choices are those of prunekit eval, on text that neither pruning nor training "
            "has seen if the text was chosen so. Times are medians; ratios are of runs in turns. A figure is measured, "
            "exact (counted), estimated (from measured ones and prices or watts that were given), or predicted. Models "
            "of several files are one row where the fingerprint of their weights, their plan or, without both, their "
            "name is the same.",
        ),
        element("h3", "Files"),
        words_table("Files", ("File", "What it is", "SHA-256"), listed, hashes=(2,)),
        element("h3", "Models"),
        words_table(
            "Models", ("Row", "Name", "Fingerprint", "SHA-256 of the plan"), list(models.values()), hashes=(2, 3)
        ),
        *(
            [element("h3", "Texts, machines and versions"), words_table("Facts", ("", "", "File"), facts)]
            if facts
            else []
        ),
        element("p", f"This page was made by {versions}.", class_="soft"),
    )
