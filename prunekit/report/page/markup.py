"""HTML in which every text is escaped unless it was made here."""

from __future__ import annotations

import html
import json
from typing import Any

from prunekit.utils.names import printable, readable

_EMPTY = ("meta", "br", "hr")


class Markup(str):
    """HTML that :func:`element` made, or that is written in prunekit's own source."""

    __slots__ = ()


Child = str | None


def element(kind: str, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """An element of that ``kind`` with ``children`` in order: markup as it is, texts escaped, None left out.

    Attributes of None or False are left out, of True have no value; ``class_`` loses its ending, and other underscores
    are dashes.
    """
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(printable(str(value)))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if kind in _EMPTY:
        return Markup(f"<{kind}{said}>")
    return Markup(f"<{kind}{said}>{joined(*children)}</{kind}>")


def joined(*children: Child) -> Markup:
    """Several children beside each other."""
    return Markup("".join(each if isinstance(each, Markup) else escaped(each) for each in children if each is not None))


def escaped(text: str) -> Markup:
    """A text, on one line, that a browser shows and never obeys."""
    return Markup(html.escape(printable(text)))


def verbatim(text: str) -> Markup:
    """:func:`escaped` for a text whose lines are wanted."""
    return Markup(html.escape(readable(text)))


def embedded(data: Any) -> Markup:
    """JSON for a script element: no text in it can end the element, or begin a comment."""
    said = json.dumps(data, indent=1, allow_nan=False)
    for sign in "<>&":
        said = said.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(said)


def section(name: str, title: str, *children: Child) -> Markup:
    """A part of the page with a heading that links can lead to."""
    return element("section", element("h2", title, id=name), *children, aria_labelledby=name)


def bullets(sentences: list[str]) -> Markup:
    return element("ul", *(element("li", each) for each in sentences))


def scrolling(about: str, *children: Child) -> Markup:
    """What may be wider than a phone: it scrolls, the page does not. Reached by the keyboard too."""
    return element("div", *children, class_="scroll", role="region", aria_label=about, tabindex=0)
