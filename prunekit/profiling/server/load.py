"""Sending requests at their times: closed loops and open loops."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.profiling.server.workload import Job
from prunekit.utils.endpoints.answer import Answer, Limits
from prunekit.utils.endpoints.client import stream
from prunekit.utils.endpoints.connections import MOST_CONNECTIONS, NO_FILES
from prunekit.utils.endpoints.endpoint import Ask, Endpoint

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Shot:
    """One request: when it was to be sent, what came of it, how long its text was in words and how many tokens were
    asked for; ``waited`` for a connection of the client. Seconds of :func:`time.perf_counter`."""

    scheduled: float
    answer: Answer
    asked: int
    words: int
    waited: bool = False

    @property
    def is_starved(self) -> bool:
        """Whether the client had no connection for it: what it took says nothing of the server."""
        return self.waited or self.answer.error == NO_FILES

    @property
    def lag(self) -> float:
        """Seconds by which the client was late."""
        return self.answer.sent - self.scheduled

    @property
    def ttft(self) -> float:
        """Seconds from the time at which it was to be sent; infinite where it failed."""
        first = self.answer.first
        return first - self.scheduled if self.answer.ok and first is not None else float("inf")

    @property
    def first_answer(self) -> float:
        """Seconds until the first token that is no reasoning; infinite where it failed, or ended before it."""
        first = self.answer.first_text
        return first - self.scheduled if self.answer.ok and first is not None else float("inf")

    @property
    def e2e(self) -> float:
        return self.answer.ended - self.scheduled if self.answer.ok else float("inf")

    @property
    def tokens(self) -> int | None:
        """Output tokens by the server's count. A server that doesn't count but says that the answer ended at its limit
        has written as many as were asked for."""
        counted = self.answer.tokens
        return self.asked if counted is None and self.answer.finish_reason == "length" else counted

    @property
    def is_uncounted(self) -> bool:
        """Whether it is an answer of which nobody knows how many tokens it has."""
        return self.answer.ok and self.tokens is None

    @property
    def tpot(self) -> float | None:
        """Infinite where it failed; None of one token, or where the server doesn't tell how many there were."""
        if not self.answer.ok:
            return float("inf")
        tokens, ttft = self.tokens, self.answer.ttft
        if tokens is None or tokens < 2 or ttft is None:
            return None
        return (self.answer.e2e - ttft) / (tokens - 1)


@dataclass(frozen=True)
class Volley:
    """The requests of one block, in the order in which they ended. It took ``seconds``, of which this process computed
    ``cpu``; ``cut`` says why it ended before all were made."""

    shots: tuple[Shot, ...]
    seconds: float
    cpu: float
    cut: str = ""

    @property
    def begin(self) -> float:
        """When its first request was to be sent; 0 where none was."""
        return min((shot.scheduled for shot in self.shots), default=0.0)


# So many requests in a row without an answer, and an endpoint counts as dead. A server that says it is busy is not.
_DEAD = 5
_BUSY = (429, 503)


@dataclass
class Gun:
    """What sends: one client of one endpoint. ``told`` is called after each request; ``exact`` asks for answers of
    exact lengths. ``failures`` counts requests in a row that got no answer. Of more than ``connections`` requests
    ``under_way`` some wait in the client."""

    client: httpx.AsyncClient
    endpoint: Endpoint
    limits: Limits
    exact: bool = True
    told: Callable[[], None] = lambda: None
    failures: int = 0
    last_error: str = ""
    connections: int = MOST_CONNECTIONS
    under_way: int = 0

    @property
    def is_dead(self) -> bool:
        return self.failures >= _DEAD

    async def fire(self, job: Job, number: str, scheduled: float | None, exact: bool) -> Shot:
        """One request now; ``scheduled`` is when it was to be sent."""
        ask = Ask(
            None if job.messages is not None else job.prompt,
            job.messages,
            max_tokens=job.tokens,
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, number)),
            exact=exact,
        )
        self.under_way += 1
        waited = self.under_way > self.connections
        try:
            answer = await stream(self.client, self.endpoint, ask, self.limits)
        finally:
            self.under_way -= 1
        if answer.ok or answer.status in _BUSY or answer.error == NO_FILES:
            self.failures = 0
        else:
            self.failures += 1
            self.last_error = answer.error or ""
        self.told()
        text = job.prompt or " ".join(str(each.get("content")) for each in job.messages or ())
        return Shot(answer.sent if scheduled is None else scheduled, answer, job.tokens, len(text.split()), waited)


async def closed(gun: Gun, jobs: Iterable[Job], concurrency: int, name: str, until: float, exact: bool) -> Volley:
    """``concurrency`` requests under way at any time, until the ``jobs`` are done or the clock shows ``until``."""
    left = iter(enumerate(jobs))
    shots: list[Shot] = []
    begin, cpu = time.perf_counter(), time.process_time()
    cut = ""

    async def work() -> None:
        nonlocal cut
        for number, job in left:
            if time.perf_counter() >= until and shots:
                cut = "time was up"
                return
            if gun.is_dead:
                cut = "no answers"
                return
            shots.append(await gun.fire(job, f"{name}-{number}", None, exact))

    tasks = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    late = await _finished(tasks, until, gun.limits)
    return Volley(tuple(shots), time.perf_counter() - begin, time.process_time() - cpu, cut or late)


async def open_loop(
    gun: Gun,
    jobs: Sequence[Job],
    times: Sequence[float],
    name: str,
    until: float,
    exact: bool,
    *,
    hopeless: Callable[[Sequence[Shot]], bool] = lambda _: False,
) -> Volley:
    """Each of ``jobs`` at its time, in seconds from now, whether or not others are done. ``hopeless`` is asked after
    each request whether the rest can be left out."""
    shots: list[Shot] = []
    begin, cpu = time.perf_counter(), time.process_time()
    tasks: list[asyncio.Future[None]] = []
    given_up = asyncio.Event()

    async def one(job: Job, number: int, due: float) -> None:
        shots.append(await gun.fire(job, f"{name}-{number}", due, exact))
        if hopeless(shots):
            given_up.set()

    cut = ""
    for number, (job, offset) in enumerate(zip(jobs, times, strict=True)):
        due = begin + offset
        # What is due after the end is not waited for.
        is_late = due > until
        wait = min(due, until) - time.perf_counter()
        if wait > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(given_up.wait(), wait)
        if given_up.is_set():
            cut = "the SLO was broken"
            break
        if gun.is_dead:
            cut = "no answers"
            break
        if is_late or (time.perf_counter() >= until and tasks):
            cut = "time was up"
            break
        tasks.append(asyncio.ensure_future(one(job, number, due)))
    if given_up.is_set():
        await _cancelled(tasks)
    late = await _finished(tasks, until, gun.limits)
    return Volley(tuple(shots), time.perf_counter() - begin, time.process_time() - cpu, cut or late)


async def _finished(tasks: Sequence[asyncio.Future[None]], until: float, limits: Limits) -> str:
    """Wait for what is under way, for as long as one request may take at most. Nothing is left behind."""
    try:
        grace = max(0.0, until - time.perf_counter()) + limits.total
        if not tasks:
            return ""
        done, pending = await asyncio.wait(tasks, timeout=grace)
        for each in done:
            if not each.cancelled():
                each.result()
        return "time was up" if pending else ""
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Future[None]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
