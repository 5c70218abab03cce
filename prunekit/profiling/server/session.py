"""One load test from its warm-up to its end: turns of both endpoints at each load, within the time there is."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from prunekit.profiling.server.config import ServerConfig, Slo
from prunekit.profiling.server.joules import energies, window_name
from prunekit.profiling.server.load import Gun, Volley, closed, open_loop
from prunekit.profiling.server.measured import Load, measured, medians
from prunekit.profiling.server.report import Compared
from prunekit.profiling.server.slo import Capacity, Probe, Search, begun, hopeless, is_told, judge, probe_size
from prunekit.profiling.server.statistics import ratio_of
from prunekit.profiling.server.warmup import Warm, warm_up
from prunekit.profiling.server.workload import Workload, arrivals
from prunekit.profiling.server_energy import IDLE, Meter
from prunekit.utils.phases.run import current
from prunekit.utils.progress import progress
from prunekit.utils.timing import order

# A closed loop's rate at the most requests at a time is about what a server can do.
OPEN_SHARE, SEARCH_SHARE = 0.6, 0.5
# The search takes as much time as so many other loads.
_WEIGHTS = {"warm-up": 0.7, "search": 4.0}
# As many rates a search tries, about: for the estimate of the time that is left.
_FIRST_RATES, _LATER_RATES = 6, 4
WARM_UP, SEARCH, REST = "warming up", "highest load within the SLO", "servers at rest"


class Ended(Exception):
    """An endpoint stopped answering: what was measured before is kept."""


@dataclass
class Budget:
    """The time there is: ``until`` is the end of all by :func:`time.perf_counter`; each phase gets its share of what is
    left."""

    until: float
    weights: dict[str, float]

    def begin(self, title: str) -> float:
        """When the phase must end."""
        now = time.perf_counter()
        whole = sum(self.weights.values())
        weight = self.weights.pop(title, 1.0)
        return now + max(0.0, self.until - now) * (weight / whole if whole else 1.0)

    @property
    def is_up(self) -> bool:
        return time.perf_counter() >= self.until


@dataclass
class Session:
    """The ``guns`` have the baseline's first, where there is one. What is measured is added to :attr:`loads`, so that
    it is there whenever the test is stopped."""

    config: ServerConfig
    guns: Sequence[Gun]
    workload: Workload
    loads: list[Compared] = field(default_factory=list)
    warm: list[Warm] = field(default_factory=list)
    capacity: Capacity | None = None
    notes: list[str] = field(default_factory=list)
    stopped: str = ""
    began: float = field(default_factory=time.perf_counter)
    meter: Meter | None = None

    def planned(self) -> list[tuple[str, Load]]:
        """Loads with the titles of their phases. An open loop without a rate gets one when closed loops are done."""
        config = self.config
        if self.workload.kind == "trace":
            return [("trace", Load("trace"))]
        made = [Load("closed", each) for each in config.concurrency]
        made += [Load("open", rate=rate) for rate in config.rates or ()]
        named = [(each.name, each) for each in made]
        if config.rates is None and config.concurrency:
            named.append(("open loop", Load("open")))
        if config.natural_tokens:
            natural = Load("natural", max(config.concurrency, default=1))
            named.append((natural.name, natural))
        return named

    @property
    def titles(self) -> list[str]:
        rest = [REST] if self.meter is not None and self.meter.sensor is not None else []
        return [WARM_UP, *rest, *(title for title, _ in self.planned()), *([SEARCH] if self.config.slo else [])]

    async def run(self) -> None:
        """All phases. Raises PrunekitError where an endpoint answers nothing at first."""
        weights = dict.fromkeys(self.titles, 1.0) | {WARM_UP: _WEIGHTS["warm-up"]}
        if self.config.slo is not None:
            weights[SEARCH] = _WEIGHTS["search"]
        budget = Budget(self.began + 60 * self.config.max_minutes, weights)
        await self._warm(budget)
        await self._rest(budget)
        try:
            for title, load in self.planned():
                if budget.is_up:
                    raise Ended("the time was up before all loads were measured")
                await self._measure(
                    title, replace(load, rate=self._open_rate()) if title == "open loop" else load, budget
                )
            if self.config.slo is not None:
                await self._search(self.config.slo, budget)
        except Ended as ended:
            self.stopped = str(ended)

    async def _warm(self, budget: Budget) -> None:
        until = budget.begin(WARM_UP)
        sides = len(self.guns)
        with progress(WARM_UP, self.config.warmup * sides) as advance:
            for side, gun in enumerate(self.guns):
                gun.told = advance
                now = time.perf_counter()
                made = await warm_up(gun, self.workload, side, self.config.warmup, now + (until - now) / (sides - side))
                self.warm.append(made)
                # A server that was slow at first may take exact lengths, and one that has no words for them not.
                gun.exact = made.exact
        self._foresee(budget)

    async def _rest(self, budget: Budget) -> None:
        """What the machine draws while its servers, which are warm, have nothing to do."""
        if self.meter is None or REST not in self.titles:
            return
        budget.weights.pop(REST, None)
        seconds = self.meter.idle_seconds(budget.until - time.perf_counter())
        with progress(REST, 1) as advance:
            if seconds:
                with self.meter.window(IDLE):
                    await asyncio.sleep(seconds)
            advance()

    def _foresee(self, budget: Budget) -> None:
        """How long the phases will take, from the pace of the warm-up."""
        run = current.get()
        if run is None:
            return
        left = max(0.0, budget.until - time.perf_counter())
        whole = sum(budget.weights.values()) or 1.0
        paces = [each.medians[-1] * self.config.tokens for each in self.warm if each.medians]
        made = {}
        for title, load in self.planned():
            needed = sum(paces) * self.config.requests / (OPEN_SHARE if load.kind == "open" else 1.0)
            made[title] = min(left * budget.weights.get(title, 1.0) / whole, needed) if paces else left / whole
        if REST in self.titles and self.meter is not None:
            made[REST] = self.meter.idle_seconds(left)
        made[SEARCH] = left * budget.weights.get(SEARCH, 0.0) / whole
        run.foresee(made)

    def _open_rate(self) -> float:
        """0.6 of what the slower endpoint came to in its fastest closed loop, in requests a second."""
        rate = OPEN_SHARE * min(self._fastest(side) for side in range(len(self.guns)))
        return max(1e-3, float(f"{rate:.3g}"))

    def _fastest(self, side: int) -> float:
        closed_loops = [each for each in self.loads if each.results[side].load.kind == "closed"]
        rates = [each.results[side].requests_per_second for each in closed_loops]
        if rates and max(rates) > 0:
            return max(rates)
        pace = self.warm[side].medians
        return 1 / (pace[-1] * self.config.tokens) if pace else 1.0

    async def _measure(self, title: str, load: Load, budget: Budget) -> None:
        """Both endpoints in turns: A B B A …"""
        until = budget.begin(title)
        config, sides = self.config, len(self.guns)
        turns = order(config.blocks) if sides == 2 else [0] * config.blocks
        volleys: list[list[Volley]] = [[] for _ in self.guns]
        count = self._count(load)
        try:
            with progress(title, count * sides) as advance:
                for done, side in enumerate(turns):
                    if budget.is_up and all(volleys):
                        break
                    gun, block = self.guns[side], len(volleys[side])
                    gun.told = advance
                    size = count // config.blocks + (block < count % config.blocks)
                    now = time.perf_counter()
                    end = now + max(0.0, until - now) / (len(turns) - done)
                    with self._window(load, side):
                        volleys[side].append(await self._volley(gun, load, side, block, size, end))
                    if gun.is_dead:
                        raise self._ended(side)
        finally:
            if all(volleys):
                self.loads.append(self._compared(load, volleys))

    def _ended(self, side: int) -> Ended:
        """No address is told: the sentence goes into files."""
        name = "the baseline" if len(self.guns) == 2 and side == 0 else "the endpoint"
        return Ended(f"{name} stopped answering ({self.guns[side].last_error})")

    def _window(self, load: Load, side: int) -> AbstractContextManager[None]:
        return nullcontext() if self.meter is None else self.meter.window(window_name(load.name, side))

    def _count(self, load: Load) -> int:
        jobs = len(self.workload.jobs)
        return min(self.config.requests, jobs) if load.kind == "trace" else self.config.requests

    async def _volley(self, gun: Gun, load: Load, side: int, block: int, count: int, until: float) -> Volley:
        config = self.config
        what, natural = f"{load.name} {block}", load.kind == "natural"
        name = f"{self.workload.run_id}-{len(self.loads)}-{'ab'[side]}{block}"
        exact = gun.exact and not natural
        if load.kind == "trace":
            first = block * (self._count(load) // config.blocks) + min(block, self._count(load) % config.blocks)
            jobs = [*self.workload.take(what, side, count, first=first)]
            begin = min((job.at or 0.0 for job in jobs), default=0.0)
            times = [((job.at or 0.0) - begin) / config.speed for job in jobs]
            return await open_loop(gun, jobs, times, name, until, exact)
        made = self.workload.take(what, side, count, natural=natural)
        if load.kind == "open":
            assert load.rate is not None
            times = arrivals(load.rate, count, config.burstiness, f"{config.seed}/{what}")
            return await open_loop(gun, [*made], times, name, until, exact)
        return await closed(gun, made, load.concurrency or 1, name, until, exact)

    def _compared(self, load: Load, volleys: list[list[Volley]]) -> Compared:
        results = tuple(measured(load, each, self.config.slo) for each in volleys)
        ratios = {}
        if len(volleys) == 2:
            # A block without a request did not fail: it was not made.
            pairs = [(medians(a), medians(b)) for a, b in zip(*volleys, strict=False) if a.shots and b.shots]
            for name in ("ttft", "tpot", "e2e", "requests_per_second", "tokens_per_second", "tokens", "characters"):
                ratios[name] = ratio_of([(a.get(name, math.nan), b.get(name, math.nan)) for a, b in pairs])
            if any(each.reasoning for each in results):
                ratios["first_answer"] = ratio_of([(a["first_answer"], b["first_answer"]) for a, b in pairs])
        spent = () if self.meter is None else energies(self.meter, load.name, results)
        return Compared(results, ratios, tuple(tuple(each) for each in volleys), spent)

    async def _search(self, slo: Slo, budget: Budget) -> None:
        until = budget.begin(SEARCH)
        blocks = self.config.blocks
        found: list[list[Search]] = [[] for _ in self.guns]
        expected = [len(self.guns) * (_LATER_RATES if block else _FIRST_RATES) for block in range(blocks)]
        try:
            with progress(SEARCH, sum(expected)) as advance:
                for block in range(blocks):
                    now = time.perf_counter()
                    # The first search of each has all to find; later ones look near it.
                    weights = [1 if each else 3 for each in range(block, blocks)]
                    end = now + max(0.0, until - now) * weights[0] / sum(weights)
                    near = [next((each.rate for each in reversed(one) if each.rate is not None), None) for one in found]
                    made = await self._block(slo, block, end, near, expected[block], advance)
                    for one, search in zip(found, made, strict=True):
                        one.append(search)
        finally:
            self.capacity = Capacity(slo, tuple(tuple(each) for each in found))

    async def _block(
        self,
        slo: Slo,
        block: int,
        until: float,
        near: Sequence[float | None],
        expected: int,
        advance: Callable[[int], object],
    ) -> list[Search]:
        """One search of each endpoint, a rate of one after a rate of the other: a machine that is slower for minutes is
        so for both. It counts as ``expected`` rates, however many it takes."""
        seed = f"{self.config.seed}/search"
        brackets = [
            begun(
                max(1e-3, SEARCH_SHARE * self._fastest(side)),
                draw=random.Random(f"{seed}/{side}/{block}"),
                around=around,
            )
            for side, around in enumerate(near)
        ]
        going = [*range(len(self.guns))]
        while going:
            for side in (*going,):
                bracket = brackets[side]
                rate = bracket.next_rate()
                made = None if rate is None else await self._probe(slo, side, rate, block, len(bracket.probes), until)
                if made is None:
                    going.remove(side)
                else:
                    bracket.add(made)
                    if sum(len(each.probes) for each in brackets) <= expected:
                        advance(1)
            # A B B A: none is always the later one.
            going.reverse()
        advance(max(0, expected - sum(len(each.probes) for each in brackets)))
        return [each.found for each in brackets]

    async def _probe(self, slo: Slo, side: int, rate: float, block: int, number: int, until: float) -> Probe | None:
        """How ``rate`` requests a second fare; None where the time was up before that was told."""
        gun, config = self.guns[side], self.config
        count = probe_size(slo, rate, config.requests)
        # What does not fit into the time says nothing.
        if time.perf_counter() + (count - 1) / rate > until:
            return None
        # All rates of a block have one pattern of gaps and lengths, on both sides. So a lucky pattern, which alone may
        # be worth a tenth of the load, is lucky for both, and the ratio hardly shows it.
        pattern = f"search {block}"
        jobs = [*self.workload.take(f"{pattern} {number}", side, count, lengths=pattern)]
        times = arrivals(rate, count, config.burstiness, f"{config.seed}/{pattern}")
        name = f"{self.workload.run_id}-s{'ab'[side]}{block}-{number}"
        gun.told, gun.failures = lambda: None, 0
        volley = await open_loop(gun, jobs, times, name, until, gun.exact, hopeless=hopeless(slo, count))
        if not any(shot.answer.ok for shot in volley.shots):
            # One more request, alone, tells a server that is too slow from one that is gone.
            gun.failures = 0
            await gun.fire(jobs[0], f"{name}-alone", None, gun.exact)
            if gun.failures:
                raise self._ended(side)
        return judge(rate, volley, slo) if is_told(volley, slo, count) else None
