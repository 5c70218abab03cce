"""One prunekit command in a process of its own: what it told, and what it took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.spent import Spent
from benchmarks.quality.measured_command import timed


@dataclass(frozen=True)
class Ended:
    """``told`` are the JSON objects on its standard output in turn, those of earlier processes that kept the same log
    among them; ``spent`` is the last process's own."""

    code: int
    told: list[Any]
    spent: Spent
    error: str


def run(arguments: Sequence[str], log: Path) -> Ended:
    """Run `prunekit` with ``arguments``, which ask for JSON. What it prints is added to ``log``."""
    with log.open("a", encoding="utf-8") as out:
        code, error, spent = timed(arguments, out)
    return Ended(code, list(objects(log.read_text(encoding="utf-8"))), spent, error.strip()[-500:])


def objects(text: str) -> Iterator[Any]:
    """The JSON objects that stand in ``text`` one after the other; one that a killed process left unfinished is passed
    over."""
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except ValueError:
            place = text.find("\n{", place) + 1 or -1
            continue
        yield found
        place = text.find("{", end)
