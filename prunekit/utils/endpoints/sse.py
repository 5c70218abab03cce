"""Server-sent events from bytes that arrive in any pieces."""

from __future__ import annotations

import codecs

# The longest event: a usage chunk has hundreds of bytes, a chunk with log-probabilities thousands.
LONGEST_EVENT = 1 << 22


class EventParser:
    """Takes bytes as they come, and gives the data of each event that is complete.

    By the WHATWG rules: lines end with CR, LF or both; a line that begins with a colon is a comment; ``data`` lines of
    one event are joined; a blank line ends it. UTF-8 is decoded across pieces. Raises ValueError where an event is
    longer than :data:`LONGEST_EVENT`.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._line: list[str] = []
        self._data: list[str] = []
        self._length = 0
        self._after_cr = False
        self.comments = 0

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that ``piece`` completes."""
        return self._lines(self._decode(piece))

    def close(self) -> list[str]:
        """The data of an event that the end of the stream cut off before its blank line."""
        events = self._lines(self._decode(b"", True))
        if self._line:
            events += self._end_line()
        return events + self._end_event()

    def _lines(self, text: str) -> list[str]:
        events: list[str] = []
        # The LF of a CR LF whose halves came in two pieces.
        if self._after_cr and text:
            text = text[1:] if text[0] == "\n" else text
            self._after_cr = False
        if text.endswith("\r"):
            self._after_cr = True
        first, *others = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._add(first)
        for part in others:
            events += self._end_line()
            self._add(part)
        return events

    def _add(self, part: str) -> None:
        if part:
            self._line.append(part)
            self._length += len(part)
            if self._length > LONGEST_EVENT:
                raise ValueError(f"an event has more than {LONGEST_EVENT >> 20} MiB")

    def _end_line(self) -> list[str]:
        line = "".join(self._line)
        self._line.clear()
        if not line:
            return self._end_event()
        if line.startswith(":"):
            self.comments += 1
            self._length -= len(line)
            return []
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        else:
            self._length -= len(line)
        return []

    def _end_event(self) -> list[str]:
        data, self._data, self._length = self._data, [], 0
        return ["\n".join(data)] if data else []
