"""Weeks of a server, drawn from pools of requests and judged by the watch itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from benchmarks.monitoring.pools import read
from prunekit.monitoring.baseline.gather import windows
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.log.request import Request, sample
from prunekit.monitoring.scoring.contexts import ScoringConfig
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.scores import RequestScore
from prunekit.monitoring.scoring.signals import model_signals
from prunekit.monitoring.verdicts.watcher import Watcher

WINDOW, WEEK = 200, 7 * 86400.0
REFERENCE_WINDOWS = 60
T = TypeVar("T")


class Table(Scorer):
    """A scorer that has read everything already: its scores by the ids of requests."""

    def __init__(self, scores: dict[str, RequestScore], weights: str) -> None:
        self.config, self.dense = ScoringConfig(), SimpleNamespace()
        self._rows = scores
        self._identity = {
            "deployed": weights,
            "dense": "dense",
            "dtype": "bfloat16",
            "prompt_tokens": 0,
            "answer_tokens": 0,
        }

    @property
    def identity(self) -> dict[str, Any]:
        return self._identity

    def scores(
        self, requests: Sequence[Request], shadowed: Sequence[Request] = ()
    ) -> tuple[list[RequestScore], dict[str, str]]:
        beside = {each.id for each in shadowed}
        rows = [self._rows[each.id] for each in requests]
        return [row if row.id in beside else replace(row, shadow=None) for row in rows], {}


@dataclass(frozen=True)
class Stock:
    """Requests of a pool: ``scored`` ones beside their scores, and ``others``, whose scores nobody asks for. ``placed``
    holds the scores of what weeks were made of, by the ids there."""

    name: str
    scored: tuple[tuple[Request, RequestScore], ...]
    others: tuple[Request, ...]
    placed: dict[str, RequestScore] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, name: str) -> Stock:
        data, scores = read(folder, name)
        requests = [
            Request(
                "",
                prompt_ids=tuple(prompt),
                answer_ids=tuple(answer),
                n_in=len(prompt),
                n_out=len(answer),
                finish_reason="length",
            )
            for prompt, answer in zip(data["prompts"], data["answers"], strict=True)
        ]
        return cls(name, tuple(zip(requests, scores, strict=False)), tuple(requests[len(scores) :]))

    def without(self, first: int) -> Stock:
        """All but the first ``first`` that have scores."""
        return replace(self, name=f"{self.name}-{first}", scored=self.scored[first:])

    def halves(self, share: float, rng: Any) -> tuple[Stock, Stock]:
        """``share`` of the requests, drawn at random, and the rest: no request is in both."""
        scored, later = _split(self.scored, share, rng)
        others, others_later = _split(self.others, share, rng)
        return replace(self, scored=scored, others=others), replace(self, scored=later, others=others_later)

    def weeks(self, count: int, rng: Any, begin: int = 0) -> Iterator[Request]:
        """So many windows, one a week. The requests that the watch will give to the models, by their ids, are of those
        with scores. Each is taken once, until all were."""
        scored = _each_once(self.scored, rng)
        others = _each_once(self.others or [each for each, _ in self.scored], rng)
        for week in range(begin, begin + count):
            blank = [Request(f"{self.name}-{week}-{number}") for number in range(WINDOW)]
            taken = {each.id for each in sample(blank, ScoringConfig().prompts)}
            for number, each in enumerate(blank):
                if each.id in taken:
                    row, score = next(scored)
                    self.placed[each.id] = replace(score, id=each.id)
                else:
                    row = next(others)
                yield replace(row, id=each.id, ts=1.8e9 + (week + number / WINDOW) * WEEK)


def _split(rows: Sequence[T], share: float, rng: Any) -> tuple[tuple[T, ...], tuple[T, ...]]:
    order, at = rng.permutation(len(rows)), round(share * len(rows))
    return tuple(rows[each] for each in order[:at]), tuple(rows[each] for each in order[at:])


def _each_once(rows: Sequence[T], rng: Any) -> Iterator[T]:
    while True:
        for place in rng.permutation(len(rows)):
            yield rows[place]


def learn(stock: Stock, folder: Path, seed: int) -> tuple[Baseline, Path]:
    """The baseline of REFERENCE_WINDOWS weeks of ``stock``, made by `watch init` of a log on disk."""
    log, base = folder / "learnt.jsonl", folder / "learnt.json"
    with log.open("w") as handle:
        for each in stock.weeks(REFERENCE_WINDOWS, np.random.default_rng(seed)):
            row = {
                key: getattr(each, key)
                for key in ("id", "ts", "prompt_ids", "answer_ids", "n_in", "n_out", "finish_reason")
            }
            handle.write(json.dumps(row) + "\n")
    features = base.with_suffix(".features.safetensors")
    signals = model_signals(Table(stock.placed, "sound"), features, window=WINDOW, overwrite=True)
    made = watch_init(log, base, config=WatchConfig(window=WINDOW, false_alarms=1.0), signals=signals, overwrite=True)
    log.unlink()
    return made, base


def watch(base: Baseline, file: Path, stock: Stock, weeks: int, seed: int, weights: str = "sound") -> list[Any]:
    """Verdicts on so many weeks of ``stock``: (verdict, names of the signals that are up)."""
    signals = model_signals(Table(stock.placed, weights), file.with_suffix(".features.safetensors"), window=WINDOW)
    watcher = Watcher(base, signals)
    found = []
    requests = ((each, None) for each in stock.weeks(weeks, np.random.default_rng(seed), 10_000))
    for each in windows(requests, WINDOW, signals):
        judged, row = watcher.judge(each.figures, each.sampled)
        up = sorted(name for name, signal in row["signals"].items() if signal.get("active"))
        found.append((judged.verdict, up))
    return found


def begins(found: list[Any]) -> list[tuple[int, str]]:
    """Where a signal's alarm begins: (week, name)."""
    before: set[str] = set()
    made = []
    for week, (_, up) in enumerate(found):
        made += [(week, name) for name in up if name not in before]
        before = set(up)
    return made
