"""The parts of the page below the first table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.report.facts.claims import Example, FileSaid, Planned
from prunekit.report.facts.costs import cost_columns, uses
from prunekit.report.facts.metrics import METRICS
from prunekit.report.facts.rows import Grouped
from prunekit.report.facts.tables import Column, Decision, columns
from prunekit.report.page.cells import figure_table, heading, sources_table, words_table
from prunekit.report.page.markup import Markup, element, joined, scrolling, section, verbatim
from prunekit.report.page.svg import BAR, FFN, HEADS, page_style, svg
from prunekit.report.page.tradeoff import plot
from prunekit.report.pictures import widths_figure

if TYPE_CHECKING:
    from prunekit.profiling.prices import Prices

_MOST_PICTURES, _MOST_EXAMPLES, _MOST_REASONS = 12, 24, 400
# Texts that are no secret of whoever made the report.
_PUBLIC = ("builtin", "wikitext")
_QUALITY = ("loss_added", "kl", "top1_agreement", "perplexity")
_SPEED = (
    "ttft_ratio",
    "tpot_ratio",
    "ttft",
    "tpot",
    "ttft_p99",
    "tpot_p99",
    "latency",
    "latency_p99",
    "tokens_per_second",
    "requests_per_second",
    "goodput",
    "failed_share",
    "output_tokens",
    "peak_bytes",
)
_SIZE = (
    "parameters",
    "blocks_share",
    "file_bytes",
    "weight_bytes",
    "kv_bytes_per_token",
    "memory_bytes",
    "users",
    "prune_minutes",
)


def tradeoffs(grouped: Grouped, decision: Decision) -> Markup | None:
    """Quality against size, and against the time of a token."""
    size = decision.file_bytes if decision.file_bytes.known() > 1 else (columns("parameters", grouped) or [None])[0]
    costs = [each for each in (size, decision.tpot_ratio, decision.ttft_ratio) if each is not None]
    made = [plot(grouped, cost, decision.quality, number) for number, cost in enumerate(costs, start=1)]
    shown = [each for each in made if each is not None]
    return section("tradeoff", "Quality against size and time", *shown) if shown else None


def widths(grouped: Grouped, files: Sequence[FileSaid], first: int) -> Markup | None:
    """FFN widths and heads that each plan keeps. Figures are numbered from ``first`` on."""
    plans: dict[str, Planned] = {}
    for file in files:
        for each in file.reading.plans:
            row = grouped.row_of(each.subject)
            # A model and its plan are two files of one thing.
            plans.setdefault(each.plan.file_digest(), each)
            if row is not None and each.subject.fingerprint:
                plans[each.plan.file_digest()] = each
    if not plans:
        return None
    shown = list(plans.values())[:_MOST_PICTURES]
    made = []
    for number, each in enumerate(shown, start=first):
        row = grouped.row_of(each.subject)
        name = each.subject.name if row is None else f"{row.letter}: {row.name}"
        title = (
            f"FFN width and query heads of every layer that {each.subject.name} keeps, in front of the dense model's"
        )
        with page_style():
            picture = svg(widths_figure(each.plan, (BAR, FFN, HEADS)), number, title)
        dropped = each.plan.dropped_layers
        said = f"Layers that are gone: {', '.join(map(str, dropped))}." if dropped else "No layer is gone."
        made.append(
            element(
                "div",
                element("h3", name),
                element(
                    "figure", scrolling(f"Widths of {name}", picture), element("figcaption", said), class_="picture"
                ),
                class_="keep",
            )
        )
    more = len(plans) - len(shown)
    note = element("p", f"{more} more plans are not drawn.") if more else None
    return section("widths", "What each plan keeps", *made, note)


def side_by_side(grouped: Grouped, files: Sequence[FileSaid], show_texts: bool) -> Markup | None:
    """What the models go on with after one beginning; of texts that may be private only where that was asked for, those
    first that part first from the dense model."""
    examples = [each for file in files for each in file.reading.examples]
    if not examples:
        return None
    shown = [each for each in examples if show_texts or _is_public(each)]
    hidden = len(examples) - len(shown)
    notes = [
        element(
            "p",
            f"{hidden} {'completion' if hidden == 1 else 'completions'} of texts that may be private "
            f"{'is' if hidden == 1 else 'are'} left out; --show-texts shows them.",
            class_="soft",
        )
        if hidden
        else None
    ]
    groups: dict[tuple[str, str | None], list[Example]] = {}
    for each in shown:
        groups.setdefault((each.prompt, each.dense), []).append(each)
    ordered = (
        sorted(groups.items(), key=lambda item: min(map(_shared, item[1]))) if show_texts else list(groups.items())
    )
    if show_texts and shown:
        notes.append(
            element("p", "The worst first: those in which a model parts from the dense one after the fewest words.")
        )
    made = [_example(number, found, grouped) for number, (_, found) in enumerate(ordered[:_MOST_EXAMPLES], start=1)]
    if len(ordered) > _MOST_EXAMPLES:
        notes.append(element("p", f"{len(ordered) - _MOST_EXAMPLES} more beginnings are not shown."))
    return section("completions", "The same beginning, gone on with", *notes, *made)


def _is_public(example: Example) -> bool:
    return bool(example.texts) and all(each in _PUBLIC for each in example.texts)


def _shared(example: Example) -> int:
    """Words before the two part."""
    if example.dense is None:
        return 0
    pairs = zip(example.model.split(), example.dense.split(), strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(example.model.split()))


def _example(number: int, found: list[Example], grouped: Grouped) -> Markup:
    def line(name: str, text: str, about: str = "") -> Markup:
        return element(
            "tr",
            element("th", name, element("span", about, class_="unit") if about else None, scope="row"),
            element("td", element("pre", verbatim(text))),
        )

    first = found[0]
    rows = [line("beginning", first.prompt, f"of {first.texts[0]}" if len(first.texts) == 1 else "")]
    rows += [line("dense model", first.dense)] if first.dense is not None else []
    for each in found:
        row = grouped.row_of(each.subject)
        name = each.subject.name if row is None else f"{row.letter}: {row.name}"
        rows.append(line(name, each.model, f"{_shared(each)} words alike" if each.dense is not None else ""))
    return element(
        "div",
        element("h3", f"Beginning {number}"),
        element("table", element("tbody", *rows), class_="words"),
        class_="keep",
    )


def reasons(files: Sequence[FileSaid]) -> Markup | None:
    """Why each layer is as wide as it is, where a file says it."""
    found = [each for file in files for each in file.reading.reasons]
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


def every_figure(grouped: Grouped, decision: Decision, prices: Prices | None) -> Markup:
    """All figures, in a table for each set-up, and where those of the first table come from."""
    parts = []
    for name, title in ((_QUALITY, "Quality, by text"), (_SPEED, "Time and memory, by machine and load")):
        tables = _by_setup(name, grouped)
        parts += [element("h3", title), *tables] if tables else []
    sizes = [each for metric in _SIZE for each in columns(metric, grouped) if each.known()]
    if sizes:
        lines = [f"{each.title}: {each.setup}" for each in sizes if each.setup]
        parts += [element("h3", "Size"), figure_table("Size", grouped.rows, sizes, "; ".join(lines) or None)]
    parts += _costs(grouped, decision, prices)
    return section(
        "figures",
        "Every figure",
        *parts,
        element("h3", "Where the figures of the first table come from"),
        sources_table(grouped.rows, decision.shown),
    )


def _by_setup(metrics: Sequence[str], grouped: Grouped) -> list[Markup]:
    tables: dict[str, list[Column]] = {}
    for metric in metrics:
        for each in columns(metric, grouped):
            if each.known() or any(figure.status == "contradictory" for figure in each.figures):
                tables.setdefault(each.setup, []).append(each)
    return [figure_table(setup or "figures", grouped.rows, found, setup or None) for setup, found in tables.items()]


def _costs(grouped: Grouped, decision: Decision, prices: Prices | None) -> list[Markup]:
    if prices is None:
        return []
    told = ", ".join(f"{name} {value:g}" for name, value in prices.to_dict().items())
    lacks = f" Left out: {prices.left_out}." if prices.left_out else ""
    parts = [element("h3", "Cost"), element("p", f"By the prices that were given: {told}.{lacks}")]
    found = cost_columns(grouped)
    if found:
        setups = dict.fromkeys(each.setup for each in found)
        for setup in setups:
            same = [each for each in found if each.setup == setup]
            parts.append(figure_table("Cost", grouped.rows, same, setup or None))
    if decision.cost.known() and len(prices.utilisations) > 1:
        parts.append(_uses(grouped, decision.cost, prices))
    return parts


def _uses(grouped: Grouped, cost: Column, prices: Prices) -> Markup:
    write = METRICS[cost.metric].write
    shares = uses(cost, prices)
    body = [
        element(
            "tr",
            element("th", row.letter, scope="row"),
            *(element("td", "–" if (value := each.dollars[place]) is None else f"≈ {write(value)}") for each in shares),
        )
        for place, row in enumerate(grouped.rows)
        if any(each.dollars[place] is not None for each in shares)
    ]
    heads = [heading("Model"), *(heading(f"{each.utilisation:.0%} used", "$/M tokens") for each in shares)]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *body))
    return joined(
        element("p", "What a million output tokens cost where a smaller share of each hour is used:"),
        scrolling("Cost by use", table),
    )


def method(grouped: Grouped, files: Sequence[FileSaid], versions: str) -> Markup:
    """Of what all this is: files, models, texts, machines, versions."""
    listed = [(file.name, file.reading.kind, file.sha256) for file in files]
    models: dict[int, tuple[str, str, str, str]] = {}
    for row in grouped.rows:
        others = [name for name in row.names if name != row.name]
        called = f"{row.name} (also {', '.join(others)})" if others else row.name
        models.setdefault(row.model, (row.letter, called, row.fingerprint or "not told", row.plan or "–"))
    facts = list(
        dict.fromkeys((title, words, file.name) for file in files for title, words in file.reading.facts if words)
    )
    return section(
        "method",
        "Method and hashes",
        element(
            "p",
            "Loss added, KL and first choices are those of prunekit eval, on text that neither pruning nor training has "
            "seen if the text was chosen so. Times are medians; ratios are of runs in turns. A figure is measured, "
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
