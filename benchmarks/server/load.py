"""vLLM's OpenAI server under load: requests that arrive at random at a given rate, whoever is still being served.

Times count from the moment a request was due, so that a client that falls behind can't hide it. Prompts are token ids
that no other request has, so no cache helps.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Load:
    """``rate`` requests a second (infinity: all at once), ``requests`` in all, of ``prompt`` and ``new`` tokens."""

    rate: float
    requests: int
    prompt: int
    new: int
    seed: int = 0


@dataclass
class Served:
    """One request: seconds since it was due until it was sent, the first token and the last one came."""

    sent_s: float
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0
    problem: str | None = None


def arrivals(load: Load) -> list[float]:
    """When each request is due, in seconds: gaps are exponentially distributed (a Poisson process)."""
    if load.rate == float("inf"):
        return [0.0] * load.requests
    generator = random.Random(load.seed)
    due, now = [], 0.0
    for _ in range(load.requests):
        due.append(now)
        now += generator.expovariate(load.rate)
    return due


async def send(session: Any, url: str, ids: list[int], new: int, due: float) -> Served:
    """Stream one completion of ``new`` tokens; ``due`` is on the clock of time.perf_counter()."""
    request = {
        "prompt": ids,
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    made = Served(time.perf_counter() - due)
    try:
        async with session.post(f"{url}/v1/completions", json=request) as answer:
            if answer.status != 200:
                made.problem = f"status {answer.status}: {(await answer.text())[:300]}"
                return made
            async for line in answer.content:
                text = line.decode("utf-8").strip()
                if not text.startswith("data: ") or text == "data: [DONE]":
                    continue
                chunk = json.loads(text[6:])
                now = time.perf_counter() - due
                if chunk.get("choices"):
                    made.first_s = now if made.first_s is None else made.first_s
                    made.last_s = now
                if chunk.get("usage"):
                    made.tokens = chunk["usage"]["completion_tokens"]
    except (OSError, asyncio.TimeoutError, ValueError) as error:
        made.problem = repr(error)
    return made


async def drive(url: str, load: Load, vocabulary: int, run: int, limit_s: float) -> dict[str, Any]:
    """Put ``load`` on the server and return what came of it. ``run`` makes its prompts different from other runs'."""
    import aiohttp

    generator = random.Random(f"{load.seed} {run}")
    prompts = [[generator.randrange(vocabulary) for _ in range(load.prompt)] for _ in range(load.requests)]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=limit_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        start = time.perf_counter()

        async def later(due: float, ids: list[int]) -> Served:
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            return await send(session, url, ids, load.new, start + due)

        served = await asyncio.gather(*(later(due, ids) for due, ids in zip(arrivals(load), prompts, strict=True)))
        return summarize(load, list(served), time.perf_counter() - start)


def summarize(load: Load, served: list[Served], took_s: float) -> dict[str, Any]:
    """Medians and 95th percentiles of TTFT and TPOT in seconds, tokens a second, and how late requests were sent."""
    whole = [each for each in served if each.problem is None and each.tokens == load.new]
    row: dict[str, Any] = {
        "rate": "inf" if load.rate == float("inf") else load.rate,
        "requests": load.requests,
        "prompt": load.prompt,
        "new": load.new,
        "completed": len(whole),
        "took_s": took_s,
        "requests_per_s": len(whole) / took_s,
        "tokens_per_s": sum(each.tokens for each in whole) / took_s,
        "late_s": max((each.sent_s for each in served), default=None),
    }
    problems = sorted({each.problem for each in served if each.problem is not None})
    if problems:
        row["problems"] = problems[:3]
    firsts = [each.first_s for each in whole if each.first_s is not None]
    steps = [
        (each.last_s - each.first_s) / (load.new - 1)
        for each in whole
        if each.first_s is not None and each.last_s is not None and load.new > 1
    ]
    for name, values in (("ttft", firsts), ("tpot", steps)):
        row[f"{name}_s"] = median(values) if values else None
        row[f"{name}_p95_s"] = quantiles(values, n=20)[-1] if len(values) > 1 else None
    return row
