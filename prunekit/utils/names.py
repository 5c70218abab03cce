"""Names and texts of unknown origin as they may be shown: what a terminal would obey is spelled out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Control characters (escape sequences begin with one), line separators, lone surrogates, what turns the direction of
# what follows, and tags, which nobody sees.
_NAME = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# A text has lines, and Arabic and Hebrew use marks.
TEXT_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")
_LONGEST = 2000


def printable(text: str) -> str:
    """A name, or a sentence that holds names, on one line: what a terminal would obey is spelled out, as in \\x1b."""
    return _NAME.sub(_spelled, text)


def pathless(text: str) -> str:
    """A sentence with the folders of files left out: what others will read."""
    return re.sub(r"(?<![\w:/])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:;,]+[\\/])+", "", text)


def readable(text: str) -> str:
    """:func:`printable` for a text whose lines and tabs are wanted."""
    return TEXT_CONTROL.sub(_spelled, text.replace("\r\n", "\n"))


def sentence(text: str) -> str:
    """:func:`printable`, with its middle left out where someone's file made it longer than anyone reads."""
    made = printable(text)
    return made if len(made) <= _LONGEST else f"{made[: _LONGEST // 2]} … {made[-_LONGEST // 2 :]}"


def nearest(name: str, names: Iterable[str]) -> str:
    """``" (did you mean 'flap'?)"`` where one of ``names`` is nearly ``name``, else nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
