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
# English text, where nobody counted.
_CHARACTERS_A_TOKEN = 4


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
    _used: Counter[tuple[int, int]] = field(default_factory=Counter, repr=False)
    _next: dict[int, int] = field(default_factory=dict, repr=False)
    _order: tuple[int, ...] = field(default=(), repr=False)
    _words: tuple[str, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        return {"synthetic": "synthetic (made up by prunekit, no real traffic)"}.get(self.kind, self.kind)

    def learn(self, words: int, tokens: int | None) -> None:
        """A prompt of ``words`` words was ``tokens`` tokens by a server's count."""
        if tokens and words >= 4:
            self.tokens_a_word = min(20.0, max(0.2, tokens / words))

    def take(
        self,
        what: str,
        side: int,
        count: int,
        *,
        lengths: str | None = None,
        natural: bool = False,
        first: int | None = None,
        warm: bool = False,
    ) -> Iterator[Job]:
        """``count`` jobs of the block ``what``: for each ``side`` the same lengths, with other beginnings of made-up
        texts. Blocks that name the same ``lengths`` have the same made-up ones. Jobs of a file come one after the
        other, those of prompts in an order that the seed draws; ``first`` is the first job of a trace. None of the
        file's texts is used where it is to ``warm``: a prefix cache must not know them."""
        begin = 0
        if self.jobs and not warm:
            begin = self._next.get(side, 0) if first is None else first
            # Of a block that is cut the rest stays unused, so that both sides go on at the same job.
            self._next[side] = max(self._next.get(side, 0), begin + count)
        return self._taken(what, lengths or what, side, range(begin, begin + count), natural, warm)

    def _taken(self, what: str, lengths: str, side: int, places: range, natural: bool, warm: bool) -> Iterator[Job]:
        draw = random.Random(f"{self.config.seed}/{lengths}")
        for number, place in enumerate(places):
            if self.jobs:
                index = self._place(place)
                job = self.jobs[index]
                chat = job.messages is not None
                if warm:
                    length = job.prompt_tokens or math.ceil(job.characters / _CHARACTERS_A_TOKEN)
                    job = replace(job, prompt=None, messages=None, prompt_tokens=length)
                elif job.prompt is not None or job.messages is not None:
                    self._used[side, index] += 1
            else:
                config, chat = self.config, False
                tokens = _spread(draw, config.tokens, config.spread)
                job = Job(None, _spread(draw, config.prompt, config.spread), tokens)
            if job.prompt is None and job.messages is None:
                tag = hashlib.sha256(f"{self.run_id}/{what}/{side}/{number}".encode()).hexdigest()
                text = self._text(job.prompt_tokens, tag)
                job = replace(job, messages=({"role": "user", "content": text},)) if chat else replace(job, prompt=text)
            yield replace(job, tokens=self.config.natural_tokens) if natural else job

    def _place(self, place: int) -> int:
        """Which job stands at ``place``. A file of prompts may be sorted, and each load gets a fair part of it."""
        if self.kind == "prompts" and not self._order:
            whole = range(len(self.jobs))
            self._order = tuple(random.Random(f"{self.config.seed}/order").sample(whole, len(whole)))
        return self._order[place % len(self.jobs)] if self._order else place % len(self.jobs)

    @property
    def repeated(self) -> int:
        """How many requests sent one of the user's texts to a server that had seen it, whose prefix cache may have
        helped; of the server with the most."""
        return self._most(again=True)

    @property
    def sent(self) -> int:
        """How many of the user's texts were sent to the server that was sent the most, repeats counted."""
        return self._most()

    def _most(self, again: bool = False) -> int:
        """Of the server with the most: texts that were sent, or those that were sent ``again``."""
        made: Counter[int] = Counter()
        for (side, _), times in self._used.items():
            made[side] += times - again
        return max(made.values(), default=0)

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
