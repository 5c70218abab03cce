"""Weeks of a server, made of pools by drawing requests from them again and again, judged by the watch itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.monitoring.pools import read
from prunekit.monitoring.baseline.gather import windows
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.scoring.contexts import ScoringConfig
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.scores import RequestScore
from prunekit.monitoring.scoring.signals import model_signals
from prunekit.monitoring.verdicts.watcher import Watcher

WINDOW, WEEK = 200, 7 * 86400.0
REFERENCE_WINDOWS = 60
# A request's id in a simulated log: the pool's row, then its place in the log.
_PLACE = "#"
_LEARNT: dict[tuple[str, int], tuple[Baseline, Path]] = {}


class Table(Scorer):
    """A scorer that has read everything already: rows of pools by the ids of requests."""

    def __init__(self, scores: dict[str, RequestScore], weights: str) -> None:
        self.config, self.dense = ScoringConfig(), SimpleNamespace()
        self._rows = scores
        self.__dict__["identity"] = {
            "deployed": weights,
            "dense": "dense",
            "dtype": "bfloat16",
            "prompt_tokens": 0,
            "answer_tokens": 0,
        }

    def scores(
        self, requests: Sequence[Request], shadowed: Sequence[Request] = ()
    ) -> tuple[list[RequestScore], dict[str, str]]:
        beside = {each.id for each in shadowed}
        rows = [(each.id, self._rows[each.id.partition(_PLACE)[0]]) for each in requests]
        return [row if key in beside else replace(row, shadow=None) for key, row in rows], {}


@dataclass(frozen=True)
class Drawn:
    """Requests of a pool, drawn with replacement from its rows ``first`` to ``last``."""

    name: str
    requests: tuple[Request, ...]
    scores: dict[str, RequestScore]

    @classmethod
    def of(cls, folder: Path, name: str) -> Drawn:
        data, scores = read(folder, name)
        requests = [
            Request(
                each.id,
                prompt_ids=tuple(prompt),
                answer_ids=tuple(answer),
                n_in=len(prompt),
                n_out=len(answer),
                finish_reason="length",
            )
            for each, prompt, answer in zip(scores, data["prompts"], data["answers"], strict=True)
        ]
        return cls(name, tuple(requests), {each.id: each for each in scores})

    def part(self, which: int, parts: int) -> Drawn:
        """Every ``parts``-th request, from number ``which`` on."""
        return replace(self, name=f"{self.name}-{which}-{parts}", requests=self.requests[which::parts])

    def weeks(self, count: int, rng: Any, begin: int = 0) -> Iterator[Request]:
        """So many windows, one a week."""
        for number in range(count * WINDOW):
            row = self.requests[int(rng.integers(len(self.requests)))]
            at = begin * WINDOW + number
            ts = 1.8e9 + at * WEEK / WINDOW
            yield replace(row, id=f"{row.id}{_PLACE}{self.name}-{at}", ts=ts)


def learn(pool: Drawn, folder: Path, seed: int) -> tuple[Baseline, Path]:
    """The baseline of REFERENCE_WINDOWS weeks of ``pool``, made by `watch init` of a log on disk, once."""
    if (made := _LEARNT.get((pool.name, seed))) is not None:
        return made
    rng = np.random.default_rng(seed)
    log, base = folder / f"learnt-{pool.name}-{seed}.jsonl", folder / f"learnt-{pool.name}-{seed}.json"
    with log.open("w") as handle:
        for each in pool.weeks(REFERENCE_WINDOWS, rng):
            row = {
                key: getattr(each, key)
                for key in ("id", "ts", "prompt_ids", "answer_ids", "n_in", "n_out", "finish_reason")
            }
            handle.write(json.dumps(row) + "\n")
    signals = model_signals(Table(pool.scores, "sound"), base.with_suffix(".features.safetensors"), window=WINDOW)
    made = watch_init(log, base, config=WatchConfig(window=WINDOW, false_alarms=1.0), signals=signals, overwrite=True)
    log.unlink()
    _LEARNT[pool.name, seed] = made, base
    return made, base


def watch(base: Baseline, file: Path, pool: Drawn, weeks: int, seed: int, weights: str = "sound") -> list[Any]:
    """Verdicts on so many weeks of ``pool``: (verdict, names of the signals that are up)."""
    signals = model_signals(Table(pool.scores, weights), file.with_suffix(".features.safetensors"), window=WINDOW)
    watcher = Watcher(base, signals)
    found = []
    requests = ((each, None) for each in pool.weeks(weeks, np.random.default_rng(seed), 10_000))
    for each in windows(requests, WINDOW, True):
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
