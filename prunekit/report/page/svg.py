"""Figures of matplotlib as SVG inside a page: coloured by the page, the same bytes each time, with a title."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prunekit.report.page.markup import Markup, escaped
from prunekit.report.pictures import own_style

# Stand-ins, which become the page's own colours by day and by night.
INK, RULE, BAR, FFN, HEADS, GUESS = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_NAMES = {INK: "--ink", RULE: "--rule", BAR: "--bar", FFN: "--ffn", HEADS: "--heads", GUESS: "--guess"}
_SETTINGS: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "prunekit",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "font.size": 10.0,
}


@contextmanager
def page_style() -> Iterator[None]:
    """matplotlib's settings for a figure that goes into the page."""
    import matplotlib

    with own_style(), matplotlib.rc_context(_SETTINGS):
        yield


def svg(figure: Any, number: int, title: str) -> Markup:
    """The ``figure`` as an element, called ``title`` for those who don't see it. ``number`` tells its parts from those
    of other figures on the page. Closes the figure; call it within :func:`page_style`."""
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    made = buffer.getvalue()
    made = made[made.index("<svg") :]
    # It names other sites, though nobody visits them.
    made = re.sub(r"<metadata>.*?</metadata>\s*", "", made, flags=re.DOTALL)
    made = re.sub(r' xmlns(:\w+)?="[^"]*"', "", made)
    made = made.replace("xlink:href=", "href=")
    made = re.sub(r'\bid="', f'id="f{number}-', made)
    made = re.sub(r'(href="#|url\(#)', rf"\1f{number}-", made)
    for stand_in, name in _NAMES.items():
        made = re.sub(f"{stand_in}\\b", f"var({name})", made, flags=re.IGNORECASE)
    name = f"f{number}-title"
    head = f'<svg role="img" aria-labelledby="{name}"'
    made = made.replace("<svg", head, 1)
    end = made.index(">", made.index("<svg")) + 1
    return Markup(f'{made[:end]}<title id="{name}">{escaped(title)}</title>{made[end:].strip()}')
