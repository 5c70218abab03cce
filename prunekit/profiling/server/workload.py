"""The requests of a load test: made up from the built-in text, or read from the user's files."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from prunekit.profiling.server.config import ServerConfig
from prunekit.utils.prose import builtin_documents

# Tokens a word of English takes, until a server has counted some.
_TOKENS_A_WORD = 1.35


@dataclass(frozen=True)
class Job:
    """One request that is to be made: its text (None: words are made up), how many tokens go in and out, and when, in
    seconds from the begin of a trace."""

    prompt: str | None
    prompt_tokens: int
    tokens: int
    at: float | None = None
    messages: tuple[dict[str, Any], ...] | None = None

    @property
    def characters(self) -> int:
        return len(self.prompt or "") + sum(len(str(each.get("content"))) for each in self.messages or ())


@dataclass
class Workload:
    """Where requests come from: ``kind`` is synthetic, prompts or trace, ``jobs`` are those of a file (none: they are
    made up), ``bad`` lines were left out. ``run_id`` begins every text that is made up, so that no prefix cache has
    seen it."""

    config: ServerConfig
    kind: str
    run_id: str
    jobs: tuple[Job, ...] = ()
    bad: int = 0
    format: str = ""
    sha256: str = ""
    tokens_a_word: float = _TOKENS_A_WORD
    _used: Counter[int] = field(default_factory=Counter, repr=False)
    _words: tuple[str, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        return {"synthetic": "synthetic (made up by prunekit, no real traffic)"}.get(self.kind, self.kind)

    def learn(self, words: int, tokens: int | None) -> None:
        """A prompt of ``words`` words was ``tokens`` tokens by a server's count."""
        if tokens and words >= 4:
            self.tokens_a_word = min(20.0, max(0.2, tokens / words))

    def take(
        self, what: str, side: int, count: int, *, natural: bool = False, first: int = 0, warm: bool = False
    ) -> Iterator[Job]:
        """``count`` jobs of the block ``what``: for each ``side`` the same lengths, with other beginnings of made-up
        texts. ``first`` is the first job of a trace. Of a trace none of the texts is used where it is to ``warm``: a
        prefix cache must not know them."""
        draw = random.Random(f"{self.config.seed}/{what}")
        begin = draw.randrange(len(self.jobs)) if self.jobs and self.kind == "prompts" else first
        for number in range(count):
            if self.jobs:
                job = self.jobs[(begin + number) % len(self.jobs)]
                chat = job.messages is not None
                if warm and self.kind == "trace":
                    job = replace(job, prompt=None, messages=None)
                self._used[side] += job.prompt is not None or job.messages is not None
            else:
                config, chat = self.config, False
                tokens = _spread(draw, config.tokens, config.spread)
                job = Job(None, _spread(draw, config.prompt, config.spread), tokens)
            if job.prompt is None and job.messages is None:
                tag = hashlib.sha256(f"{self.run_id}/{what}/{side}/{number}".encode()).hexdigest()
                text = self._text(job.prompt_tokens, tag)
                job = replace(job, messages=({"role": "user", "content": text},)) if chat else replace(job, prompt=text)
            yield replace(job, tokens=self.config.natural_tokens) if natural else job

    @property
    def repeated(self) -> bool:
        """Whether one of the user's texts was sent to one server more than once, which its prefix cache may have
        helped."""
        return any(each > len(self.jobs) for each in self._used.values())

    @property
    def longest(self) -> int:
        """About the most tokens that a request and its answer have together. Of texts that nobody counted a token is
        taken to be two characters."""
        config = self.config
        if not self.jobs:
            return 4 * config.prompt + max(4 * config.tokens, config.natural_tokens)
        natural = config.natural_tokens if self.kind == "prompts" else 0
        return max(max(job.prompt_tokens, job.characters // 2) + max(job.tokens, natural) for job in self.jobs)

    def _text(self, tokens: int, tag: str) -> str:
        """Words that are about ``tokens`` tokens. The first ones are drawn by ``tag``, so that texts part at once."""
        if not self._words:
            self._words = tuple(dict.fromkeys(" ".join(builtin_documents("calibration")).split()))
        draw = random.Random(tag)
        count = max(1, round(tokens / self.tokens_a_word))
        words = [tag[:6], *draw.choices(self._words, k=count - 1)]
        return " ".join(words)


def _spread(draw: random.Random, mean: int, spread: float) -> int:
    """A length of a lognormal distribution with this ``mean``, at most four times it."""
    value = mean * math.exp(draw.gauss(0, spread) - spread**2 / 2) if spread else mean
    return max(1, min(4 * mean, round(value)))


def arrivals(rate: float, count: int, burstiness: float, seed: str) -> list[float]:
    """``count`` times in seconds from 0 on, ``rate`` a second on average: gaps of a gamma distribution with the shape
    ``burstiness``, rescaled so that the last is at (count - 1) / rate. Rescaled times of one count have the same load
    on each endpoint."""
    draw = random.Random(seed)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + draw.gammavariate(burstiness, 1 / (rate * burstiness)))
    last = times[-1]
    scale = (count - 1) / rate / last if last > 0 else 1.0
    return [each * scale for each in times]
