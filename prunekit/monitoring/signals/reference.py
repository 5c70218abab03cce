"""What is kept of a reference log: its counts, and those of enough windows to know how windows vary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunekit.monitoring.log.request import Request, sample
from prunekit.monitoring.signals.protocol import REFERENCE_SAMPLE, WINDOW_SAMPLE
from prunekit.monitoring.signals.window import BUCKETS, LENGTHS, Figures

TOP = 1023
# Windows kept for the calibration, in pairs of neighbours; of a longer log every second pair, every fourth, and so on.
_MOST_PAIRS = 256


@dataclass(frozen=True)
class Mix:
    """Tokens of prompts: the ``top`` buckets of ``source``, int64 [TOP], and the ``counts`` of these and of the rest,
    float64 [TOP + 1]."""

    source: str
    top: Any
    counts: Any

    def of(self, window: Figures) -> Any:
        """The counts of ``window`` over the same buckets, float64 [TOP + 1]."""
        buckets, counts = window.tokens[self.source]
        made = np.zeros(len(self.top) + 1)
        order = np.argsort(self.top)
        place = np.searchsorted(self.top, buckets, sorter=order)
        place = order[np.minimum(place, len(self.top) - 1)]
        known = self.top[place] == buckets
        np.add.at(made, place[known], counts[known])
        made[-1] = counts[~known].sum()
        return made

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {"source": self.source, "top": self.top.tolist(), "counts": self.counts.tolist()}


@dataclass(frozen=True)
class Reference:
    """A reference log as a whole: counts of lengths, float64 [LENGTHS], the token mix where prompts are told, and how
    many of its ``requests`` (0: not known) tell how they ``ended``, at least whether they failed."""

    lengths_in: Any
    lengths_out: Any
    mix: Mix | None
    ended: int = 0
    requests: int = 0

    @property
    def tells_ends(self) -> bool:
        """Whether most requests tell how they ended, and not only those that failed."""
        return 0 < self.requests <= 2 * self.ended

    def without(self, window: Figures) -> Reference:
        """The reference less one of its own windows."""
        mix = self.mix
        if mix is not None:
            mix = Mix(mix.source, mix.top, mix.counts - mix.of(window))
        return Reference(
            self.lengths_in - window.lengths_in,
            self.lengths_out - window.lengths_out,
            mix,
            self.ended - window.counts.told,
            max(0, self.requests - window.counts.requests),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "lengths_in": self.lengths_in.tolist(),
            "lengths_out": self.lengths_out.tolist(),
            "mix": None if self.mix is None else self.mix.to_dict(),
            "ended": self.ended,
            "requests": self.requests,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Reference:
        """The counterpart of :meth:`to_dict`."""
        mix = data["mix"]
        made = None
        if mix is not None:
            made = Mix(mix["source"], np.array(mix["top"], np.int64), np.array(mix["counts"], float))
        return cls(
            np.array(data["lengths_in"], float),
            np.array(data["lengths_out"], float),
            made,
            int(data.get("ended", 0)),
            int(data.get("requests", 0)),
        )


@dataclass
class Gathered:
    """A reference log while it is read: totals, and pairs of windows with a sample of their requests for the models."""

    windows: int = 0
    requests: int = 0
    ended: int = 0
    lengths_in: Any = field(default_factory=lambda: np.zeros(LENGTHS))
    lengths_out: Any = field(default_factory=lambda: np.zeros(LENGTHS))
    tokens: dict[str, Any] = field(
        default_factory=lambda: {name: np.zeros(BUCKETS, np.int64) for name in ("ids", "words")}
    )
    prompts: dict[str, int] = field(default_factory=lambda: {"ids": 0, "words": 0})
    outcomes: list[int] = field(default_factory=lambda: [0, 0, 0])
    kept: dict[int, tuple[Figures, list[Request]]] = field(default_factory=dict)
    sampled: list[Request] = field(default_factory=list)
    _stride: int = 1

    def add(self, window: Figures, requests: list[Request], with_models: bool) -> None:
        """Count one window; its ``requests`` are sampled where models will want them."""
        self.lengths_in += window.lengths_in
        self.lengths_out += window.lengths_out
        for source, (buckets, counts) in window.tokens.items():
            self.tokens[source][buckets] += counts
            self.prompts[source] += window.counts.prompts[source]
        self.requests += window.counts.requests
        self.ended += window.counts.told
        for wrong, reworked in window.counts.outcomes:
            self.outcomes = [self.outcomes[0] + 1, self.outcomes[1] + wrong, self.outcomes[2] + reworked]
        if (self.windows // 2) % self._stride == 0:
            self.kept[self.windows] = (window, sample(requests, WINDOW_SAMPLE) if with_models else [])
            if len(self.kept) > 2 * _MOST_PAIRS:
                self._stride *= 2
                self.kept = {at: each for at, each in self.kept.items() if (at // 2) % self._stride == 0}
        if with_models:
            self.sampled = sample([*self.sampled, *requests], REFERENCE_SAMPLE)
        self.windows += 1

    def reference(self) -> Reference:
        """The totals. Tokens are compared by their ids where at least half of the prompts have them, else by words."""
        source = "ids" if 2 * self.prompts["ids"] >= max(1, self.requests) else "words"
        totals = self.tokens[source]
        found = np.argsort(-totals, kind="stable")[:TOP]
        found = found[totals[found] > 0]
        if not len(found):
            return Reference(self.lengths_in, self.lengths_out, None, self.ended, self.requests)
        counts = np.append(totals[found], totals.sum() - totals[found].sum()).astype(float)
        mix = Mix(source, found, counts)
        return Reference(self.lengths_in, self.lengths_out, mix, self.ended, self.requests)

    def neighbours(self, places: list[int]) -> Iterator[tuple[int, int]]:
        """Of the kept windows at ``places`` (in the log's order) those that followed each other, as places in that
        list."""
        where = {at: place for place, at in enumerate(places)}
        return ((place, where[at + 1]) for at, place in where.items() if at + 1 in where)
