"""What the models go on with after one beginning, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunekit.report.facts.claims import Example, FileSaid
from prunekit.report.facts.metrics import METRICS
from prunekit.report.facts.rows import Grouped
from prunekit.report.page.cells import called
from prunekit.report.page.markup import Markup, element, section, verbatim

_MOST_EXAMPLES = 24
# Texts that are no secret of whoever made the report.
_PUBLIC = ("builtin", "wikitext")


def side_by_side(grouped: Grouped, files: Sequence[FileSaid], show_texts: bool) -> Markup | None:
    """What the models go on with after one beginning; of texts that may be private only where that was asked for. Those
    come first after which a model is farthest from the dense one in the whole text, where a file tells of them."""
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
    # sorted is stable: those that nobody ranked stand in the order of the files.
    ordered = sorted(groups.items(), key=lambda item: -max(_rank(each) for each in item[1]))
    if any(each.kl is not None for each in shown):
        notes.append(
            element(
                "p",
                "The worst first: of all beginnings in the text those after which a model is farthest from the dense "
                "one, by KL on the tokens that follow there. Then some that are spread evenly over the text.",
            )
        )
    made = [_example(number, found, grouped) for number, (_, found) in enumerate(ordered[:_MOST_EXAMPLES], start=1)]
    if len(ordered) > _MOST_EXAMPLES:
        notes.append(element("p", f"{len(ordered) - _MOST_EXAMPLES} more beginnings are not shown."))
    return section("completions", "The same beginning, continued by each model", *notes, *made)


def _rank(example: Example) -> float:
    return -math.inf if example.kl is None else example.kl


def _is_public(example: Example) -> bool:
    return bool(example.texts) and all(each in _PUBLIC for each in example.texts)


def _shared(example: Example) -> int:
    """Words before the two part."""
    if example.dense is None:
        return 0
    pairs = zip(example.model.split(), example.dense.split(), strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(example.model.split()))


def _alike(example: Example) -> str:
    if example.dense is None:
        return ""
    words = _shared(example)
    alike = f"{words} {'word' if words == 1 else 'words'} alike"
    return alike if example.kl is None else f"KL {METRICS['kl'].write(example.kl)}, {alike}"


def _example(number: int, found: list[Example], grouped: Grouped) -> Markup:
    def line(name: str, text: str, about: str = "") -> Markup:
        return element(
            "tr",
            element("th", name, element("span", about, class_="unit") if about else None, scope="row"),
            element("td", element("pre", verbatim(text.strip()))),
        )

    first = found[0]
    rows = [line("beginning", first.prompt, f"of {first.texts[0]}" if len(first.texts) == 1 else "")]
    rows += [line("dense model", first.dense)] if first.dense is not None else []
    for each in found:
        name = called(each.subject, grouped)
        rows.append(line(name, each.model, _alike(each)))
    return element(
        "div",
        element("h3", f"Beginning {number}"),
        element("table", element("tbody", *rows), class_="words"),
        class_="keep",
    )
