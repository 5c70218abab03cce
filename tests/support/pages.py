"""The README and the pages of docs/ as data: headings, links, code, and the commands in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_ENDS = {"&&", "||", "|", ";", "&", ">"}


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return _FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[str]:
        """The blocks of code in one of ``languages`` (all of them where none is named)."""
        return [body for language, body in _FENCE.findall(self.text) if not languages or language in languages]

    def inline(self) -> list[str]:
        """Code within sentences."""
        return _INLINE.findall(self.prose)

    def links(self) -> list[str]:
        """Where its links and pictures lead, other sites left out."""
        return [link for link in _LINK.findall(self.prose) if "://" not in link]

    def anchors(self) -> set[str]:
        """What a link may name behind #, by GitHub's rules."""
        return {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in _HEADING.findall(self.prose)
        }

    def commands(self, program: str) -> Iterator[list[str]]:
        """The arguments of every call of ``program`` in its blocks of code."""
        for block in self.blocks():
            for line in block.replace("\\\n", " ").splitlines():
                if program in line:
                    yield from _calls(line, program)


def _calls(line: str, program: str) -> Iterator[list[str]]:
    words = shlex.split(line.removeprefix("RUN "), comments=True)
    while words:
        end = next((place for place, word in enumerate(words) if word in _ENDS), len(words))
        call, words = words[:end], words[end + 1 :]
        if call and call[0] == program:
            yield call[1:]
