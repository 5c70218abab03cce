"""Two models taking turns until it is clear which is faster, or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prunekit.models.runner import Decoded
from prunekit.utils.measuring.doubts import NARROW, Doubt, is_narrow, of_machine
from prunekit.utils.measuring.load import Counters, Load, between, read_counters
from prunekit.utils.phases.telling import unneeded
from prunekit.utils.progress import progress
from prunekit.utils.timing import Clock, order

# Not even with time left: what hundreds of runs don't show is no matter of more of them.
MOST_TURNS = 1000
Stopped = Literal["narrow", "time", "most", "fixed"]
"""Why no more turns were taken: the intervals are narrow, the time is up, :data:`MOST_TURNS` were taken, or a fixed
number was asked for."""


@dataclass(frozen=True)
class Until:
    """At least ``repeats`` turns; then more, two at a time, until the 95 % interval of the median ratio is at most
    ``narrow`` of it wide, of the first token and of the others, or ``seconds`` have gone since the first turn."""

    repeats: int
    seconds: float
    narrow: float = NARROW


@dataclass
class Turns:
    """Seconds of every turn by model, the dense one first: of the first token and of each other one."""

    ttft: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    tpot: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    stopped: Stopped = "fixed"
    load: Load | None = None

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """What the machine did meanwhile."""
        load = self.load
        if load is None:
            return ()
        return tuple(of_machine(load.others, load.stolen, load.swapped, load.cpus, load.throttled))

    def are_narrow(self, width: float) -> bool:
        return all(
            is_narrow([after / before for before, after in zip(*pair, strict=True)], width)
            for pair in (self.ttft, self.tpot)
        )


def until_narrow(title: str) -> str:
    """What further turns are called."""
    return f"{title}, until the range is narrow"


def take_turns(
    run: Callable[[int], Decoded],
    until: Until,
    title: str,
    *,
    now: Clock = time.monotonic,
    counters: Callable[[], Counters] = read_counters,
) -> Turns:
    """``run(0)`` times the dense model once and ``run(1)`` the pruned one: A B B A …, and what the machine did
    meanwhile."""
    made = Turns()
    before, begin = counters(), now()

    def take(which: Sequence[int]) -> None:
        for index in which:
            timed = run(index)
            made.ttft[index].append(timed.ttft)
            made.tpot[index].append(timed.tpot)

    fixed = order(until.repeats)
    with progress(title, len(fixed)) as advance:
        for index in fixed:
            take([index])
            advance()
    if until.seconds > 0:
        made.stopped = "narrow"
        if made.are_narrow(until.narrow):
            unneeded(until_narrow(title), "it is narrow already")
        else:
            # By the clock: nobody knows how many turns it takes.
            with progress(until_narrow(title), until.seconds) as advance:
                while not made.are_narrow(until.narrow):
                    start = now()
                    if start - begin >= until.seconds or len(made.ttft[0]) >= MOST_TURNS:
                        made.stopped = "time" if start - begin >= until.seconds else "most"
                        break
                    take((0, 1, 1, 0) if len(made.ttft[0]) % 2 == 0 else (1, 0, 0, 1))
                    advance(now() - start)
    made.load = between(before, counters())
    return made
