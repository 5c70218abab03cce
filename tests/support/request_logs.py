"""Request logs of made-up traffic, as rows and as files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import Baseline

START = 1_760_000_000.0
_WORDS = [f"w{index}" for index in range(500)]
_OFTEN = list(accumulate(1 / (index + 2) for index in range(500)))


def rows(count: int, seed: int = 0, *, per_day: float = 2000.0, kind: str = "healthy") -> Iterator[dict[str, Any]]:
    """``count`` requests: "healthy", "domain" (other words in prompts), "broken" (answers that repeat themselves) or
    "rejected" (people reject more)."""
    draw = random.Random(seed)
    vocabulary = _WORDS[::-1] if kind == "domain" else _WORDS
    for index in range(count):
        n_in = max(1, int(draw.lognormvariate(2.5, 0.5)))
        n_out = max(4, int(draw.lognormvariate(2.5, 0.4)))
        repeats = draw.random() < (0.5 if kind == "broken" else 0.03)
        rejected = draw.random() < (0.2 if kind == "rejected" else 0.03)
        yield {
            "id": f"{seed}-{index}",
            "ts": START + index * 86400 / per_day,
            "prompt": " ".join(draw.choices(vocabulary, cum_weights=_OFTEN, k=n_in)),
            "n_in": n_in,
            "answer": " ".join(["again"] * n_out if repeats else draw.choices(_WORDS, k=n_out)),
            "n_out": n_out,
            "finish_reason": "length" if draw.random() < 0.05 else "stop",
            "latency_ms": 20 * n_out * draw.lognormvariate(0, 0.2),
            "outcome": "rejected" if rejected else "accepted",
        }


def write_log(path: Path, *args: Any, **options: Any) -> Path:
    """A log of :func:`rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(*args, **options)))
    return path


def make_baseline(folder: Path, requests: int) -> tuple[Path, Baseline]:
    """The baseline of so many requests, in windows of 50, and its file."""
    log = write_log(folder / "reference.jsonl", requests, 1)
    return folder / "base.json", watch_init(log, folder / "base.json", config=WatchConfig(window=50))


def history(folder: Path) -> list[dict[str, Any]]:
    """What a watch in ``folder`` has kept of each window."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def refuse(words: str, call: Callable[[], object]) -> None:
    """``call`` raises PrunekitError with a sentence that has these ``words``."""
    with pytest.raises(PrunekitError, match=words):
        call()
