"""A console for text of unknown origin: shown, never obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from prunekit.utils.names import TEXT_CONTROL, printable, readable


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
