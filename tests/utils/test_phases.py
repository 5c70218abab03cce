"""Phases of a run: numbers that are true, estimates by a clock of the test's own, and lines for those who watch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.lines import Lines, Log
from prunekit.utils.phases.pace import Pace, correction
from prunekit.utils.phases.run import Run, running
from prunekit.utils.phases.telling import keeping, phases, unneeded
from prunekit.utils.phases.telling import progress as listened
from prunekit.utils.phases.watcher import Watched
from prunekit.utils.phases.words import about, duration, line, size
from prunekit.utils.progress import aside, progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []

    def begin(self, run: Watched) -> None: ...

    def see(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def tick(self) -> None: ...

    def say(self, text: str) -> None: ...

    def announce(self, text: str) -> None: ...

    def end(self, failed: bool) -> None: ...


def made(*watchers: Any) -> tuple[Run, Clock]:
    clock = Clock()
    return Run(watchers, clock, lambda: 5_000_000_000, ticking=False), clock


# Estimates


def work_through(pace: Pace, clock: Clock, steps: list[tuple[str, float, float]]) -> list[tuple[float, float | None]]:
    """Take ``steps`` (kind, cost, seconds). Returns, after each, the seconds that are really left and the estimate."""
    seen = []
    ahead = sum(seconds for _, _, seconds in steps)
    for kind, cost, seconds in steps:
        clock.now += seconds
        ahead -= seconds
        pace.step(1, clock.now, kind=kind, cost=cost)
        seen.append((ahead, pace.left(clock.now)))
    return seen


def test_more_steps_than_expected() -> None:
    """12 of 11 is never said."""
    run, clock = made(heard := Heard())
    with running(run), phases("scoring"), progress("scoring", 2) as advance:
        for _ in range(3):
            clock.now += 1
            advance()
    assert [(each.done, each.total) for each in heard.events if each.what == "step"] == [(1, 2), (2, 2), (3, 3)]


def test_phases_alike_tell_how_long_the_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path))
    run, clock = made(heard := Heard())
    with running(run), phases("dense reads", "pruned reads") as told:
        assert told is run
        run.weigh({"dense reads": 10, "pruned reads": 8}, ["test", "alike"])
        with progress("dense reads", 4) as advance:
            clock.now += 5
            advance()
            # 15 s of this one, and 16 s of the other, of which 2 s a unit are seen so far.
            assert heard.events[-1].left_in_all == pytest.approx(15 + 16)
            for _ in range(3):
                clock.now += 5
                advance()
        with progress("pruned reads", 4):
            assert heard.events[-1].left == pytest.approx(16)
            clock.now += 16
    run, clock = made(heard := Heard())
    with running(run), phases("dense reads"):
        run.weigh({"dense reads": 5}, ["test", "alike"])
        with progress("dense reads", 4):
            # As long a unit as the last time.
            assert heard.events[-1].left == pytest.approx(10)


def test_a_phase_of_several_is_not_taken_for_the_whole() -> None:
    """Where nobody knows how long the next one takes."""
    run, clock = made(heard := Heard())
    with running(run), phases("one", "two"):
        with progress("one", 2) as advance:
            clock.now += 20
            advance()
            assert "about 20 s left of this phase, 5.0 GB" in line(heard.events[-1])
        with progress("two", 2) as advance:
            clock.now += 20
            advance()
            assert "about 20 s left, 5.0 GB" in line(heard.events[-1])


def test_the_first_step_also_warms_up() -> None:
    """50 s in place of 20: three steps later nothing is left of it in the estimate."""
    clock = Clock()
    pace = Pace(10, now=clock.now)
    seen = work_through(pace, clock, [("", 1, 50), *[("", 1, 20)] * 9])
    assert seen[0] == (180, 450)
    assert [left for _, left in seen[2:]] == pytest.approx([really for really, _ in seen[2:]])


def test_even_steps() -> None:
    clock = Clock()
    pace = Pace(10, now=clock.now)
    assert pace.left(clock.now) is None
    clock.now += 3
    pace.step(1, clock.now)
    assert pace.left(clock.now) == pytest.approx(27)
    clock.now += 2
    assert pace.left(clock.now) == pytest.approx(25)
    # A step that takes far longer still leaves the eight after it.
    clock.now += 50
    assert pace.left(clock.now) == pytest.approx(24)


def test_steps_that_cost_less_and_less() -> None:
    """As loss curves do, whose scale is measured from each layer on: by counts, they seem to take twice as long."""
    layers = 30
    clock = Clock()
    steps = [("", layers - index, 0.4 * (layers - index)) for index in range(layers)]
    pace = Pace(layers, {"": sum(cost for _, cost, _ in steps)}, now=clock.now)
    for real, found in work_through(pace, clock, steps):
        assert found == pytest.approx(real, abs=1e-6)


def test_kinds_are_timed_by_themselves() -> None:
    clock = Clock()
    steps = [each for index in range(20) for each in (("solve", 7.0, 3.0), ("scale", 20.0 - index, (20 - index) / 10))]
    work = {kind: sum(cost for each, cost, _ in steps if each == kind) for kind in ("solve", "scale")}
    found = work_through(Pace(40, work, now=clock.now), clock, steps)
    for real, left in found[1:]:
        assert left == pytest.approx(real, abs=1e-6)


def test_work_that_was_kept_takes_no_time() -> None:
    clock = Clock()
    pace = Pace(10, now=clock.now)
    pace.step(6, clock.now, kept=True)
    clock.now += 5
    pace.step(1, clock.now)
    assert pace.left(clock.now) == pytest.approx(15)


def test_what_was_foreseen_counts_until_steps_tell_more() -> None:
    clock = Clock()
    pace = Pace(100, foreseen=200.0, now=clock.now)
    assert pace.left(clock.now) == pytest.approx(200)
    for _ in range(20):
        clock.now += 1
        pace.step(1, clock.now)
    # Really 80: what was foreseen was twice as long, and counts little by now.
    assert 80 < (pace.left(clock.now) or 0) < 95


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.01, 9), st.floats(0.001, 50)), min_size=1, max_size=9),
    st.one_of(st.none(), st.floats(0.1, 1e4)),
)
def test_estimates_are_never_nonsense(steps: list[tuple[str, float, float]], foreseen: float | None) -> None:
    clock = Clock()
    work = {"a": 0.0, "b": 0.0}
    for kind, cost, _ in steps:
        work[kind] += cost
    pace = Pace(len(steps), work, foreseen, clock.now)
    for _, found in work_through(pace, clock, steps):
        assert found is None or 0 <= found < 1e6
    assert pace.left(clock.now) == pytest.approx(0, abs=1e-6)


def test_a_slow_machine_is_noticed() -> None:
    assert correction([], 100) == 1
    # A tenth of the run took twice as long as was foreseen.
    assert 1.7 < correction([(10, 20)], 100) < 2
    assert correction([(0.1, 10)], 100) < 5


# Phases


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


# Lines


def lines_of(work: Callable[[Run, Clock], None], **how: Any) -> list[str]:
    written: list[str] = []
    watcher = Lines(written.append, **how)
    run, clock = made(watcher)
    with running(run):
        work(run, clock)
    return written


def an_hour(run: Run, clock: Clock) -> None:
    with phases("curves", "widths"):
        with progress("curves", 360) as advance:
            for _ in range(360):
                clock.now += 10
                advance()
        with progress("widths", 1) as advance:
            clock.now += 1
            advance()


def test_one_line_a_minute_and_each_phase() -> None:
    written = lines_of(an_hour, silent=5.0)
    assert len(written) == 62
    assert written[0] == "[1/2] curves 6/360, about 59 min left of this phase, 5.0 GB"
    assert written[-2:] == ["[1/2] curves: 360 in 1 h 00 min", "[2/2] widths: 1.0 s"]


def test_more_lines_in_detail() -> None:
    assert len(lines_of(an_hour, verbose=True)) == 360 + 4


def test_short_runs_are_silent() -> None:
    def short(seconds: float) -> Callable[[Run, Clock], None]:
        def work(run: Run, clock: Clock) -> None:
            with phases("a", "b"):
                for title in ("a", "b"):
                    with progress(title, 1) as advance:
                        clock.now += seconds
                        advance()

        return work

    assert lines_of(short(2), silent=5.0) == []
    # Nothing is lost of one that goes on.
    assert lines_of(short(3), silent=5.0) == ["[1/2] a: 3.0 s", "[2/2] b: 3.0 s"]


def test_one_long_step_is_told_of_too() -> None:
    written: list[str] = []
    watcher = Lines(written.append)
    run, clock = made(watcher)
    with running(run), phases("a"), progress("a", 2):
        for _ in range(180):
            clock.now += 1
            watcher.tick()
    assert written[:2] == ["a 0/2, 1 min 00 s so far, 5.0 GB", "a 0/2, 2 min 00 s so far, 5.0 GB"]


def test_a_log_is_added_to(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    for _ in range(2):
        log = Log(file, "prune model\x1b[2J")
        run, clock = made(log)
        with running(run):
            an_hour(run, clock)
            log.say("Something\nelse.")
        log.close()
    rows = file.read_text().splitlines()
    assert len(rows) == 2 * (62 + 3)
    assert rows[0][20:] == r"prunekit prune model\x1b[2J" and rows[0][4] == "-" and rows[0][13] == ":"
    assert rows[-2][20:] == r"Something\nelse." and rows[-1][20:] == "finished after 1 h 00 min"


@pytest.mark.parametrize("content", [b"my notes", b"\xff\xfe\x00binary", b"2026-01-01 somebody's\n"])
def test_a_users_file_is_no_log(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(PrunekitError, match="no log that prunekit wrote"):
        Log(file, "")
    assert file.read_bytes() == content


def test_logs_that_can_not_be(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no" / "folder.log"):
        with pytest.raises(PrunekitError, match="can't be written"):
            Log(place, "")
    # An empty file, and what is no file, are taken.
    (tmp_path / "empty").touch()
    Log(tmp_path / "empty", "").close()
    Log(Path("/dev/null"), "").close()


def test_a_log_on_a_full_disk_ends_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(Path("/dev/full"), "x")
    run, clock = made(log)
    with running(run):
        an_hour(run, clock)
    err = capsys.readouterr().err
    assert err.count("the log ends here") == 1 and "No space left" in err


# Words


def test_words() -> None:
    assert [duration(each) for each in (0, 3.21, 59.4, 312, 3599.6, 7500)] == [
        "0.0 s",
        "3.2 s",
        "59 s",
        "5 min 12 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    assert [about(each) for each in (0.2, 42, 89, 150, 360, 5990, 6100, 12_000, 500_000)] == [
        "1 s",
        "40 s",
        "90 s",
        "2.5 min",
        "6 min",
        "1 h 40 min",
        "1 h 40 min",
        "3 h 20 min",
        "6 days",
    ]
    assert [size(each) for each in (1e5, 554e6, 999.6e6, 3.14e9, 9.96e9, 42e9)] == [
        "1 MB",
        "554 MB",
        "1.0 GB",
        "3.1 GB",
        "10 GB",
        "42 GB",
    ]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.floats(1, 1e7))
def test_what_is_said_is_near_what_is_known(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    words = about(seconds).split()
    said = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(said - seconds) <= max(0.5, 0.11 * seconds)


def test_titles_of_strangers_are_spelled_out() -> None:
    event = ProgressEvent("step", 1, 2, "a\x1b[2Jb", note="c\nd")
    assert line(event).startswith(r"[1/2] a\x1b[2Jb (c\nd), ")


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


def test_lines_are_let_out_by_two_threads_at_once() -> None:
    """Held back for some seconds, by a thread that ticks and by the one that works: none is lost, none comes twice."""
    for _ in range(50):
        written: list[str] = []
        lines = Lines(written.append, silent=20.0)
        run, clock = made(lines)
        run.start()
        for number in range(20):
            with run.phase(f"phase {number}", 1):
                pass
        clock.now += 30
        threads = [threading.Thread(target=each) for each in (lines.tick, partial(lines.end, False), lines.tick)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [text.split(":")[0].split("]")[-1].strip() for text in written] == [f"phase {n}" for n in range(20)]


def test_a_command_that_ends_by_its_own_code_has_finished(tmp_path: Path) -> None:
    import typer

    log = Log(tmp_path / "log", "prune x")
    run, _ = made(log)
    with pytest.raises(typer.Exit), running(run):
        raise typer.Exit(3)
    assert "finished after" in (tmp_path / "log").read_text()


def test_a_log_may_be_a_pipe(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    log = Log(tmp_path / "log", "prune x")
    run, _ = made(log)
    with running(run), progress("a", 1):
        pass
    log.close()
    assert b"prunekit prune x" in os.read(reader, 1 << 16)
    os.close(reader)
