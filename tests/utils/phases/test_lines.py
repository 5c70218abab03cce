"""What those who watch a run read: lines, logs and words."""

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
from prunekit.utils.phases.run import Run, running
from prunekit.utils.phases.telling import phases
from prunekit.utils.phases.words import about, duration, line, size
from prunekit.utils.progress import progress
from tests.support.watched_runs import Clock, made


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
