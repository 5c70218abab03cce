"""A run and its phases: which are to come, which is under way, and who is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from prunekit.utils.advance import Advance
from prunekit.utils.machine import memory_now
from prunekit.utils.phases.alike import Alike
from prunekit.utils.phases.event import ProgressEvent, What
from prunekit.utils.phases.pace import Pace, correction
from prunekit.utils.phases.phase import Expected, Phase
from prunekit.utils.phases.watcher import Watcher
from prunekit.utils.phases.words import at, count

# Memory is asked for at most every so many seconds, and watchers are called so often where no step is made.
_MEMORY_EVERY, _TICK = 0.5, 1.0


class Run:
    """The phases of one command, or of one call from Python. ``watchers`` are told; ``clock`` gives seconds and
    ``memory`` bytes. ``ticking`` is False where nobody is to be told but by steps."""

    def __init__(
        self,
        watchers: Sequence[Watcher] = (),
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int | None] = memory_now,
        *,
        ticking: bool = True,
    ):
        self.watchers = list(watchers)
        self.clock = clock
        self.began = clock()
        self.kept: dict[str, tuple[float, float]] = {}
        """What is kept of this run for a later one: how much of how much, by what it is."""
        self.undeclared: list[str] = []
        self.more = False
        self._memory, self._memory_at = memory, float("-inf")
        self._bytes: int | None = None
        self._pending: list[Expected] = []
        self._open: list[Phase] = []
        self._count = 0
        self._foreseen: dict[str, float] = {}
        self._past: list[tuple[float, float]] = []
        self._alike: list[Alike] = []
        # What a run has come to, and the order in which it is told of. Watchers are called without the first: a
        # terminal has a thread that asks how things stand (:meth:`now`) while it holds a lock that they wait for.
        self._lock, self._telling = threading.RLock(), threading.RLock()
        self._ticker: threading.Thread | None = None
        self._stop = threading.Event()
        self._ticking = ticking

    def start(self) -> None:
        for each in self.watchers:
            each.begin(self)
        if self._ticking and self.watchers:
            self._ticker = threading.Thread(target=self._tick, daemon=True, name="prunekit progress")
            self._ticker.start()

    def finish(self, failed: bool = False) -> None:
        self._stop.set()
        if self._ticker is not None and self._ticker is not threading.current_thread():
            self._ticker.join(2 * _TICK)
        if not failed:
            for group in self._alike:
                group.keep()
        for each in self.watchers:
            each.end(failed)

    def _tick(self) -> None:
        while not self._stop.wait(_TICK):
            for each in self.watchers:
                each.tick()

    def say(self, text: str) -> None:
        """A sentence for those who watch."""
        for each in self.watchers:
            each.say(text)

    def announce(self, text: str) -> None:
        """A sentence that they show."""
        for each in self.watchers:
            each.announce(text)

    def expect(self, titles: Sequence[str], owner: object) -> None:
        """Phases that will come, in any order; the same title may come several times."""
        with self._lock:
            self._pending += [Expected(title, owner) for title in titles]

    def drop(self, owner: object) -> None:
        """Of the phases that ``owner`` expected, none will come any more."""
        with self._changing() as events:
            for each in [each for each in self._pending if each.owner is owner]:
                events.append(self._skip(each, ""))

    def unneeded(self, title: str, why: str = "") -> None:
        """The phase ``title``, where it is expected, will not come, because of ``why``."""
        with self._changing() as events:
            found = next((each for each in self._pending if each.title == title), None)
            if found is not None:
                events.append(self._skip(found, why))

    def _skip(self, expected: Expected, why: str) -> ProgressEvent:
        self._pending.remove(expected)
        self._count += 1
        return self._event("unneeded", Phase(expected.title, self._count, Pace(1), self.clock(), note=why))

    @contextmanager
    def _changing(self) -> Iterator[list[ProgressEvent]]:
        """Change something, and have watchers told of the events that the block adds, in their order."""
        with self._telling:
            events: list[ProgressEvent] = []
            with self._lock:
                yield events
            for event in events:
                for each in self.watchers:
                    each.see(event)

    def foresee(self, seconds: Mapping[str, float]) -> None:
        """How long phases will take, by their titles."""
        with self._lock:
            self._foreseen.update(seconds)

    def weigh(self, work: Mapping[str, float], what: Sequence[object]) -> None:
        """How much work phases are beside each other, by their titles, in any unit that is theirs; ``what`` says what
        work and on which machine, in JSON values. Those that are over tell how long the others take, and the last run
        with the same ``what`` tells of the first."""
        with self._lock:
            self._alike.append(Alike(dict(work), what))

    def foreseen(self) -> float | None:
        """Seconds that all phases which are to come will take; None where one of them is of unknown length."""
        return self._ahead(1.0)

    def _ahead(self, correction: float) -> float | None:
        """What was foreseen is multiplied by ``correction``."""
        with self._lock:
            if self.more:
                return None
            units = self._units()
            found = [self._expected(each.title, correction, units) for each in self._pending]
            return None if None in found else sum(each for each in found if each is not None)

    def _units(self) -> dict[str, float]:
        """Seconds that phases take by what was seen of their like, by their titles. Once for all of them: another
        process may have to be asked."""
        now, found = self.clock(), dict[str, float]()
        for group in self._alike:
            unit = group.unit(self._open, now)
            for title, work in group.work.items():
                if unit is not None:
                    found.setdefault(title, unit * work)
        return found

    def _expected(self, title: str, correction: float, units: Mapping[str, float]) -> float | None:
        """Seconds that a phase will take: what was seen of its like tells more than what was foreseen."""
        if title not in units and title in self._foreseen:
            return self._foreseen[title] * correction
        return units.get(title)

    @property
    def busy(self) -> bool:
        """Whether a phase is under way."""
        return bool(self._open)

    @contextmanager
    def phase(
        self,
        title: str,
        total: float,
        *,
        work: Mapping[str, float] | None = None,
        tokens: int | None = None,
        place: str | None = None,
        parts: bool = False,
        counted: bool = True,
    ) -> Iterator[Advance]:
        """A phase of ``total`` steps while the block runs; what happens inside another phase is a part of that."""
        with self._changing() as events:
            if self._open:
                outer = self._open[0]
                step = self._told_inside(outer, title, total)
                made = None
            else:
                made = self._begin(title, total, work, tokens, place, parts, counted)
                events.append(self._event("begun", made))
                step = self._told(made)
        try:
            yield step
        except BaseException:
            with self._lock:
                if made is None:
                    outer.inner = ""
                elif made in self._open:
                    self._open.remove(made)
            raise
        if made is not None:
            self._end(made)
        else:
            outer.inner = ""

    def _told(self, phase: Phase) -> Advance:
        def told(
            steps: float = 1, note: str = "", *, kind: str = "", cost: float | None = None, kept: bool = False
        ) -> None:
            self.advance(phase, steps, note, kind, cost, kept)

        return told

    def _told_inside(self, outer: Phase, title: str, total: float) -> Advance:
        done = 0.0

        def told(
            steps: float = 1, note: str = "", *, kind: str = "", cost: float | None = None, kept: bool = False
        ) -> None:
            nonlocal done
            done += steps
            at = f"{count(done)}/{count(total)}" if total > 1 else ""
            words = at if at and title.lower() == outer.title.lower() else f"{title} {at}".rstrip()
            self.tell_inner(outer, words, steps / total if total else 0.0)

        return told

    def _begin(
        self,
        title: str,
        total: float,
        work: Mapping[str, float] | None,
        tokens: int | None,
        place: str | None,
        parts: bool,
        counted: bool,
    ) -> Phase:
        found = next((each for each in self._pending if each.title == title), None)
        if found is not None:
            self._pending.remove(found)
        elif counted:
            self.undeclared.append(title)
        if counted:
            self._count += 1
        now = self.clock()
        foreseen = self._foreseen.get(title)
        pace = Pace(total, work, self._expected(title, self._correction(now), self._units()), now)
        made = Phase(title, self._count if counted else 0, pace, now, tokens, place, parts, foreseen)
        self._open.append(made)
        return made

    def _end(self, made: Phase) -> None:
        with self._changing() as events:
            if made not in self._open:
                return
            now = self.clock()
            if made.foreseen is not None and made.pace.total:
                # As far as it was work of this run.
                share = 1 - made.kept / made.pace.total
                if share > 0:
                    self._past.append((made.foreseen * share, now - made.began))
            self._open.remove(made)
            for group in self._alike:
                group.add(made, now)
            events.append(self._event("ended", made))

    def _correction(self, now: float) -> float:
        pairs = [*self._past]
        for phase in self._open:
            share = phase.pace.share_done if phase.foreseen is not None else 0.0
            if share and phase.foreseen is not None:
                pairs.append((phase.foreseen * share, phase.pace.spent))
        return correction(pairs, sum(self._foreseen.values()))

    def advance(self, phase: Phase, steps: float, note: str, kind: str, cost: float | None, kept: bool) -> None:
        """``phase`` came ``steps`` further."""
        with self._changing() as events:
            phase.pace.step(steps, self.clock(), kind=kind, cost=cost, kept=kept)
            if kept:
                phase.kept += steps
            if note:
                phase.note = note
            events.append(self._event("step", phase))

    def tell_inner(self, phase: Phase, words: str, steps: float) -> None:
        """A part of ``phase`` came further."""
        with self._changing() as events:
            phase.inner = words
            if phase.parts and steps:
                phase.pace.step(steps, self.clock())
            if phase in self._open:
                events.append(self._event("step", phase))

    @contextmanager
    def hearing(self, heard: Callable[[], ProgressEvent | None]) -> Iterator[None]:
        """While the block runs, another process does the work of the phase that is under way, and ``heard`` is how that
        stands."""
        with self._lock:
            phase = self._open[0]
            phase.heard = heard
        try:
            yield
        finally:
            with self._lock:
                phase.heard = None

    def now(self) -> ProgressEvent | None:
        """How the phase that is under way stands; None between two."""
        with self._lock:
            return self._event("step", self._open[0]) if self._open else None

    def _event(self, what: What, phase: Phase) -> ProgressEvent:
        now = self.clock()
        left = phase.pace.left(now) if what in ("begun", "step") else None
        inner, memory = phase.inner, self._memory_now(now)
        if what == "step" and phase.heard is not None and (heard := phase.heard()) is not None:
            inner, memory = at(heard), heard.memory or memory
            left = left if heard.left_in_all is None else heard.left_in_all
        seconds = now - phase.began
        done = phase.pace.steps
        fresh = done - phase.kept
        speed = None
        if phase.tokens and fresh > 0 and seconds > 0:
            speed = phase.tokens * fresh / max(1e-9, phase.pace.total) / seconds
        return ProgressEvent(
            what,
            phase.number,
            self._count + len(self._pending),
            phase.title,
            done=done,
            total=phase.pace.total,
            kept=phase.kept,
            seconds=seconds,
            left=left,
            left_in_all=self._left_in_all(left, now),
            memory=memory,
            tokens_per_second=speed,
            place=phase.place,
            note=inner or phase.note,
            more=self.more,
        )

    def _left_in_all(self, left: float | None, now: float) -> float | None:
        """What is left with all phases that follow; None where one of them is of unknown length."""
        others = self._ahead(self._correction(now))
        return None if left is None or others is None else left + others

    def _memory_now(self, now: float) -> int | None:
        if now - self._memory_at >= _MEMORY_EVERY:
            self._bytes, self._memory_at = self._memory(), now
        return self._bytes


current: ContextVar[Run | None] = ContextVar("prunekit_run", default=None)
_latest: list[Run] = []
"""The run that began last, for those who say what is left of it."""


def latest() -> Run | None:
    return _latest[-1] if _latest else None


@contextmanager
def running(run: Run) -> Iterator[Run]:
    """``run`` is the one of this thread while the block runs."""
    token = current.set(run)
    _latest[:] = [run]
    run.start()
    done = False
    try:
        yield run
        done = True
    except BaseException as error:
        # A command that has done its work may end with a code of its own.
        done = hasattr(error, "exit_code")
        raise
    finally:
        run.finish(failed=not done)
        if done:
            _latest.clear()
        current.reset(token)
