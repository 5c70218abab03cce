"""Answers of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prunekit.evaluation.acceptance.asked.answers import LENGTH, STOP, Answer
from prunekit.evaluation.acceptance.asked.candidate import Candidate, Told
from prunekit.evaluation.acceptance.records import Record
from prunekit.utils.endpoints import answer as came
from prunekit.utils.endpoints.about import with_model
from prunekit.utils.endpoints.client import complete, opened
from prunekit.utils.endpoints.endpoint import Ask, Endpoint
from prunekit.utils.endpoints.naming import shown_model
from prunekit.utils.files.cache import cache_key

_RECIPE = 1
# Beside what the client itself does on 429 and 503.
_RETRIES = 2
_PAUSE = 0.5
_FOR_GOOD = ("status 400", "status 401", "status 403", "status 404", "status 413", "status 422", "too large")
LIMITS = came.Limits(connect=10, total=300)


def is_endpoint(name: str) -> bool:
    """Whether a model is named by the address of a server."""
    return name.lower().startswith(("http://", "https://"))


class RemoteModel(Candidate):
    """A model that a server runs: ``messages`` go to its chat completions, a ``prompt`` to its completions; greedy, by
    a temperature of 0. ``limits`` bound each request in time. A server that is known to answer fewer at a time than
    ``concurrency`` is asked for so many: else the others' waiting would count as theirs."""

    keeps = False

    def __init__(self, endpoint: Endpoint, *, concurrency: int, limits: came.Limits = LIMITS):
        self.endpoint = _run(_named(endpoint))
        self._concurrency = min(concurrency, endpoint.slots or concurrency)
        self._limits = limits
        self.name = shown_model(self.endpoint.model or "model")
        self.identity = {"model": self.name, "endpoint": self.endpoint.label, "fingerprint": None}
        if endpoint.sha256 is not None:
            self.identity |= {"model_sha256": endpoint.sha256, "server": endpoint.server}

    def keys(self, records: Sequence[Record], most: int) -> list[str]:
        shared = {"recipe": _RECIPE, "url": self.endpoint.base, "model": self.endpoint.model}
        return [cache_key({**shared, **each.asked, "most": each.max_tokens or most}) for each in records]

    def ask(self, records: Sequence[Record], missing: set[int], most: int, told: Told, failures: int) -> None:
        _run(self._all([records[place] for place in sorted(missing)], most, told, failures))

    async def _all(self, records: Sequence[Record], most: int, told: Told, failures: int) -> None:
        left = iter(records)
        failed = 0

        async def work(client: Any) -> None:
            nonlocal failed
            for record in left:
                answer = await self._one(client, record, record.max_tokens or most)
                failed += answer.error is not None
                told(record, answer)
                if failed > failures:
                    return

        async with opened(self.endpoint, connections=self._concurrency) as client:
            workers = [asyncio.ensure_future(work(client)) for _ in range(min(self._concurrency, len(records)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for each in workers:
                    each.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _one(self, client: Any, record: Record, most: int) -> Answer:
        ask = Ask(record.prompt, record.messages or None, max_tokens=most)
        for tries in range(_RETRIES + 1):
            got = await complete(client, self.endpoint, ask, self._limits)
            if got.ok:
                finish = LENGTH if got.finish_reason == "length" else STOP
                return Answer(got.text, got.tokens, finish)
            if got.error in _FOR_GOOD or tries == _RETRIES:
                break
            await asyncio.sleep(_PAUSE * 2**tries)
        return Answer(error=str(got.error), detail=got.detail)


async def _named(endpoint: Endpoint) -> Endpoint:
    async with opened(endpoint, connections=1) as client:
        return await with_model(client, endpoint)


def _run(work: Any) -> Any:
    """``work`` to its end, from code that is not asynchronous, or that runs in a notebook's own loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
