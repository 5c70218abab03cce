"""One window of requests as counts: what the signals without a model need of it, some kilobytes."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from prunekit.monitoring.log.request import REWORKED, WRONG, Request
from prunekit.utils.numerics.repetition import repeated_share

# Lengths by their power of two: 0, 1, 2-3, 4-7, ...
LENGTHS = 32
# Buckets of token ids and of hashed words.
BUCKETS = 1 << 20
_WORD = re.compile(r"\w+|[^\w\s]")
_MOST_CHARACTERS, _MOST_IDS = 16_384, 4096
# Answers of which repetition is counted, and tokens of each.
_ANSWERS, _ANSWER = 64, 256


@dataclass
class WindowCounts:
    """Counts of the requests of one window, and of the outcomes that were told meanwhile. ``ended`` ones tell why their
    answer ended, ``told`` ones at least whether they failed."""

    requests: int = 0
    lengths_in: list[int] = field(default_factory=lambda: [0] * LENGTHS)
    lengths_out: list[int] = field(default_factory=lambda: [0] * LENGTHS)
    tokens: dict[str, Counter[Any]] = field(default_factory=lambda: {"ids": Counter(), "words": Counter()})
    prompts: dict[str, int] = field(default_factory=lambda: {"ids": 0, "words": 0})
    ended: int = 0
    told: int = 0
    cut: int = 0
    failed: int = 0
    repetition: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    outcomes: list[tuple[bool, bool]] = field(default_factory=list)
    critical_wrong: int = 0
    first: float | None = None
    last: float | None = None

    def add(self, request: Request) -> None:
        """Count one request, or the outcome of one of before."""
        if request.outcome is not None:
            self.outcomes.append((request.outcome in WRONG, request.outcome in REWORKED))
            self.critical_wrong += bool(request.critical) and request.outcome in WRONG
        if request.edit_distance is not None:
            self.edits.append(request.edit_distance)
        if request.is_label:
            return
        self.requests += 1
        if (ts := request.ts) is not None:
            self.first = ts if self.first is None else min(self.first, ts)
            self.last = ts if self.last is None else max(self.last, ts)
        if request.n_in is not None:
            self.lengths_in[request.n_in.bit_length() % LENGTHS] += 1
        self._add_answer(request)
        self._add_tokens(request)

    def _add_answer(self, request: Request) -> None:
        self.told += request.finish_reason is not None or request.answered
        if request.finish_reason is not None:
            self.ended += 1
            self.cut += request.finish_reason == "length"
            self.failed += request.failed
        if request.failed:
            return
        if request.n_out is not None:
            self.lengths_out[request.n_out.bit_length() % LENGTHS] += 1
        if request.latency_ms is not None:
            self.latency.append(math.log(request.latency_ms + 1))
        if request.ttft_ms is not None:
            self.ttft.append(math.log(request.ttft_ms + 1))
        if len(self.repetition) < _ANSWERS:
            tokens: Any = request.answer_ids
            if tokens is None and request.answer is not None:
                tokens = request.answer[: 8 * _ANSWER].split()
            share = None if tokens is None else repeated_share(tokens[:_ANSWER])
            if share is not None:
                self.repetition.append(share)

    def _add_tokens(self, request: Request) -> None:
        if request.prompt_ids is not None:
            self.tokens["ids"].update(request.prompt_ids[:_MOST_IDS])
            self.prompts["ids"] += 1
        if request.prompt is not None:
            self.tokens["words"].update(_WORD.findall(request.prompt[:_MOST_CHARACTERS].lower()))
            self.prompts["words"] += 1

    def close(self) -> Figures:
        """The window as arrays."""
        return Figures(self, {source: _buckets(source, counts) for source, counts in self.tokens.items()})


class Figures:
    """A closed window. ``tokens`` holds for "ids" and "words" the buckets that occur, int64 [n], and how often, [n]."""

    __slots__ = ("counts", "lengths_in", "lengths_out", "tokens")

    def __init__(self, counts: WindowCounts, tokens: dict[str, tuple[Any, Any]]) -> None:
        self.lengths_in = np.array(counts.lengths_in, float)
        self.lengths_out = np.array(counts.lengths_out, float)
        self.tokens = tokens
        counts.tokens = {}
        self.counts = counts


def _buckets(source: str, counts: Counter[Any]) -> tuple[Any, Any]:
    if source == "ids":
        places = [each % BUCKETS for each in counts]
    else:
        places = [crc32(each.encode("utf-8", "surrogatepass")) % BUCKETS for each in counts]
    made = np.array(places, np.int64)
    unique, where = np.unique(made, return_inverse=True)
    return unique, np.bincount(where, list(counts.values()), len(unique)).astype(np.int64)
