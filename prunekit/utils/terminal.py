"""A console for text of unknown origin: shown, never obeyed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from prunekit.utils.names import TEXT_CONTROL, printable, readable, sentence
from prunekit.utils.process.ranks import is_first


class SafeConsole(Console):
    """A console that shows control characters of what it is given, and writes only its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not TEXT_CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(readable(segment.text), segment.style)


class Notes(logging.Handler):
    """Shows what is logged as a line on stderr, where this is the first of several ranks."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_first():
            print(record.getMessage(), file=sys.stderr)  # noqa: T201


def _make_readable(record: logging.LogRecord) -> bool:
    # For the handlers of other libraries, too: lm-eval shows everything that is logged.
    record.msg, record.args = sentence(record.getMessage()), ()
    return True


def show_notes() -> None:
    """Show warnings of prunekit's log on stderr. Repeating it changes nothing."""
    log = logging.getLogger("prunekit")
    if not any(isinstance(handler, Notes) for handler in log.handlers):
        log.addFilter(_make_readable)
        log.addHandler(Notes())
