"""What was wrong with the lines of a log: counted by kind, told in one sentence each, never a reason to stop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Each with what the reader did about it.
WORDS = {
    "broken": "no JSON object; left out",
    "not a request": "without any field of a request (docs/watch.md lists them); left out",
    "too long": "longer than 8 MiB; left out",
    "wrong type": "with a field of the wrong type; that field was left out",
    "not finite": "with a number that is not finite; that field was left out",
    "out of range": "with a value out of its range; that field was left out",
    "another model": "of another model than the one that is watched; left out",
    "duplicate": "with the id of a request just before; left out",
    "clock back": "with a time more than an hour before the line above; used",
    "clock ahead": "with a time more than a week after the line above; used",
    "lost": "where a log was moved away and not found again; its last lines may be unread",
    "cut short": "where a packed file ends before its end; what came before was used",
}
_PLACES = ("lost", "cut short")
_MOST_EXAMPLES = 3


@dataclass
class Problems:
    """Counts by kind, and where the first of each were. Lines are named by file and number, never quoted. ``empty``
    counts lines of which nothing was used, neither a request nor an outcome."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lines: int = 0
    requests: int = 0
    empty: int = 0

    def add(self, kind: str, where: str) -> None:
        """Count one line with the problem ``kind``, a key of WORDS."""
        self.counts[kind] += 1
        if len(seen := self.examples.setdefault(kind, [])) < _MOST_EXAMPLES:
            seen.append(where)

    def sentences(self) -> list[str]:
        """One sentence a kind, the most frequent first."""
        return [
            f"{count:,} {'place' if kind in _PLACES else 'line'}{'s' if count > 1 else ''} {WORDS[kind]} "
            f"(first: {', '.join(self.examples[kind])})."
            for kind, count in self.counts.most_common()
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "lines": self.lines,
            "requests": self.requests,
            "empty": self.empty,
            "problems": {kind: {"lines": n, "first": self.examples[kind]} for kind, n in self.counts.most_common()},
        }
