"""What came back of one request, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ANOTHER_MODEL = "another model answered"
"""The error of an answer whose ``model`` is not the one that was asked for."""
# More tokens than any server counts in one answer; a number above is not believed.
_MOST_TOKENS = 10**9


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them; of the prompt ``cached`` from its prefix cache, None where it doesn't tell.
    ``queue_ms`` is how long the request waited in the server, where it tells."""

    prompt: int
    completion: int
    cached: int | None = None
    reasoning: int | None = None
    queue_ms: float | None = None


@dataclass(frozen=True)
class Limits:
    """Seconds after which a request is given up: until it is connected, until the first token, between two tokens, in
    all; and how many bytes of an answer are read."""

    connect: float = 10.0
    first: float = 120.0
    gap: float = 60.0
    total: float = 600.0
    most_bytes: int = 1 << 24


@dataclass(frozen=True)
class Answer:
    """One request and what came of it. Times are :func:`time.perf_counter`'s seconds.

    ``error`` is None where the answer is whole; else its kind: ``refused``, ``unreachable``, ``reset``, ``stalled``,
    ``too many open files`` (of this process), ``too long``, ``too large``, ``status 429`` and the like, ``malformed``,
    ``cut off``, ``server error``, ``another model answered``; ``detail`` says more. ``first_text`` is when the first
    text that is no reasoning came (None: never), ``first`` when the first of both did (the first chunk, where no chunk
    held text), ``chunks`` when each chunk with text did: a chunk may hold several tokens. ``tries`` counts requests
    that were made, ``status`` is the last one's.
    """

    id: str
    sent: float
    ended: float
    error: str | None = None
    detail: str = ""
    first: float | None = None
    chunks: tuple[float, ...] = ()
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    status: int | None = None
    model: str | None = None
    tries: int = 1
    first_text: float | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def ttft(self) -> float | None:
        """Seconds from sending to the first token."""
        return None if self.first is None else self.first - self.sent

    @property
    def e2e(self) -> float:
        """Seconds from sending to the end."""
        return self.ended - self.sent

    @property
    def tokens(self) -> int | None:
        """Output tokens by the server's count; None where it doesn't tell."""
        return None if self.usage is None else self.usage.completion

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first one: (E2E − TTFT) / (tokens − 1). None of one token, or where the server
        doesn't count."""
        tokens, ttft = self.tokens, self.ttft
        if not self.ok or tokens is None or tokens < 2 or ttft is None:
            return None
        return (self.e2e - ttft) / (tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks with text."""
        return [after - before for before, after in zip(self.chunks, self.chunks[1:], strict=False)]


def read_usage(data: Any) -> Usage | None:
    """Token counts of one answer or last chunk (a JSON value of unknown origin); None where there are none."""
    if not isinstance(data, dict) or not isinstance(data.get("usage"), dict):
        return None
    usage = data["usage"]
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    cached = _count(_inner(usage, "prompt_tokens_details").get("cached_tokens"))
    if cached is None:
        # llama.cpp's own server.
        cached = _count(_inner(data, "timings").get("cache_n"))
    reasoning = _count(_inner(usage, "completion_tokens_details").get("reasoning_tokens"))
    # vLLM's, where it is asked to tell.
    queue = _inner(data, "metrics").get("queue_time_ms")
    waited = float(queue) if isinstance(queue, int | float) and 0 <= queue < 1e12 else None
    return Usage(prompt, completion, cached, reasoning, waited)


def _inner(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value <= _MOST_TOKENS else None
