"""Phases of a run: numbers that are true, whoever names them, in threads, and when it fails."""

from __future__ import annotations

import threading

import pytest

from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.run import running
from prunekit.utils.phases.telling import keeping, phases, unneeded
from prunekit.utils.phases.telling import progress as listened
from prunekit.utils.phases.watcher import Watched
from prunekit.utils.phases.words import line
from prunekit.utils.progress import aside, progress
from tests.support.watched_runs import Heard, made


def test_numbers_are_true() -> None:
    heard = Heard()
    run, clock = made(heard)
    with running(run), phases("text", "curves", "widths", "refit"):
        # In another order than they were named in.
        with progress("curves", 2) as advance:
            clock.now += 60
            advance()
            clock.now += 60
            advance(note="loss 1.2")
        unneeded("text", "kept from an earlier run")
        with progress("widths", 1) as advance:
            advance(kept=True)
    told = [(each.what, each.phase, each.phases, each.title) for each in heard.events if each.what != "step"]
    assert told == [
        ("begun", 1, 4, "curves"),
        ("ended", 1, 4, "curves"),
        ("unneeded", 2, 4, "text"),
        ("begun", 3, 4, "widths"),
        ("ended", 3, 4, "widths"),
        # What never came is told of in the end.
        ("unneeded", 4, 4, "refit"),
    ]
    assert run.undeclared == []
    lines = [line(each) for each in heard.events if each.what in ("ended", "unneeded")]
    assert lines == [
        "[1/4] curves: 2 in 2 min 00 s",
        "[2/4] text: kept from an earlier run",
        "[3/4] widths: kept from an earlier run",
        "[4/4] refit: not needed",
    ]
    assert line(heard.events[1]) == "[1/4] curves 1/2, about 60 s left of this phase, 5.0 GB"


def test_phases_inside_phases_are_parts() -> None:
    heard = Heard()
    run, _ = made(heard)
    with running(run), phases("check"), progress("check", 2, parts=True), phases("a", "b"):
        for part in ("a", "b"):
            with progress(part, 4) as advance:
                for _ in range(4):
                    advance()
    assert {(each.title, each.phases) for each in heard.events} == {("check", 1)}
    assert heard.events[-1].done == pytest.approx(2)
    assert line(heard.events[2]).startswith("check 0/2 (a 2/4), ")


def test_what_is_aside_has_no_number() -> None:
    heard = Heard()
    run, _ = made(heard)
    with running(run), phases("one", "two"):
        with aside("loading tiny"):
            pass
        with progress("one", 1) as advance, aside("loading again"):
            advance()
        with progress("two", 1) as advance:
            advance()
    assert [each.phase for each in heard.events if each.what == "ended"] == [0, 1, 2]
    assert run.undeclared == []


def test_what_nobody_has_named_is_one_more() -> None:
    heard = Heard()
    run, _ = made(heard)
    with running(run), phases("one"):
        with progress("another", 1):
            pass
        with progress("one", 1):
            pass
    assert [(each.phase, each.phases) for each in heard.events if each.what == "ended"] == [(1, 2), (2, 2)]
    assert run.undeclared == ["another"]


def test_more_phases_may_come() -> None:
    heard = Heard()
    run, _ = made(heard)
    with running(run), phases("one", more=True):
        with progress("one", 1):
            pass
        with phases("two"), progress("two", 1):
            pass
    assert [line(each).split("]")[0] for each in heard.events if each.what == "begun"] == ["[1/1+", "[2/2+"]


def test_the_whole_run() -> None:
    heard = Heard()
    run, clock = made(heard)
    with running(run), phases("a", "b", "c"):
        run.foresee({"a": 100.0, "b": 300.0})
        assert run.foreseen() is None
        run.foresee({"c": 100.0})
        assert run.foreseen() == 500
        with progress("a", 10) as advance:
            for _ in range(10):
                # Twice as long as foreseen.
                clock.now += 20
                advance()
            last = heard.events[-1]
            assert last.left_in_all == pytest.approx(800, rel=0.1)
            half = next(each for each in heard.events if each.what == "step" and each.done == 5)
            assert half.left == pytest.approx(100, rel=0.1)
            assert half.left_in_all == pytest.approx(900, rel=0.15)
            assert line(half) == "[1/3] a 5/10, about 1.5 min left of this phase, 13 min in all, 5.0 GB"
        with progress("b", 1) as advance:
            advance()
        with progress("c", 1) as advance:
            advance()


def test_a_run_that_fails_ends() -> None:
    heard = Heard()
    run, _ = made(heard)
    with pytest.raises(ValueError), running(run), phases("a", "b"), progress("a", 2) as advance:
        advance()
        raise ValueError
    assert [each.what for each in heard.events] == ["begun", "step"] and not run.busy


def test_several_threads_advance_one_phase() -> None:
    heard = Heard()
    run, _ = made(heard)
    with running(run), phases("a"), progress("a", 400) as advance:
        threads = [threading.Thread(target=lambda: [advance() for _ in range(100)]) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert heard.events[-1].done == 400
    assert [each.done for each in heard.events if each.what == "step"] == list(range(1, 401))


def test_each_thread_has_its_own_listener() -> None:
    heard: dict[str, list[str]] = {"a": [], "b": []}
    both = threading.Barrier(2)

    def work(name: str) -> None:
        with listened(lambda event: heard[name].append(event.title)):
            both.wait(10)
            with phases(name), progress(name, 3) as advance:
                for _ in range(3):
                    advance()

    threads = [threading.Thread(target=work, args=(name,)) for name in heard]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert heard == {"a": ["a"] * 5, "b": ["b"] * 5}


def test_what_a_listener_raises_ends_the_work() -> None:
    class Enough(Exception):
        pass

    def stop(event: ProgressEvent) -> None:
        if event.done == 2:
            raise Enough

    done = 0
    with pytest.raises(Enough), listened(stop), progress("a", 9) as advance:
        for _ in range(9):
            advance()
            done += 1
    assert done == 1
    # Nothing of it is left.
    with progress("b", 1) as advance:
        advance()


def test_what_is_kept_of_a_run() -> None:
    run, _ = made()
    with running(run):
        keeping("curves", 3, 30)
        keeping("sums", 4, 9)
        keeping("sums", 0, 0)
    assert run.kept == {"curves": (3, 30)}


def test_a_watcher_that_waits_for_its_own_thread_does_not_hang() -> None:
    """As a terminal does: the thread that draws asks how things stand while it holds the lock that ends drawing."""
    drawing = threading.Lock()
    asked = threading.Event()

    class Drawn(Heard):
        def begin(self, run: Watched) -> None:
            self.run = run

        def see(self, event: ProgressEvent) -> None:
            if event.what == "ended":
                assert asked.wait(5)
                assert drawing.acquire(timeout=5), "the thread that draws is not let on"
                drawing.release()

    watcher = Drawn()
    run, _ = made(watcher)

    def draw() -> None:
        with drawing:
            asked.set()
            watcher.run.now()

    with running(run), progress("a", 1):
        thread = threading.Thread(target=draw)
        thread.start()
    thread.join(5)
    assert not thread.is_alive()
