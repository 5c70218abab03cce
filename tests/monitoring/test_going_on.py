"""A watch goes on after any end: logs that grow and rotate, runs that are killed, two at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Seen
from prunekit.monitoring.running.folder import Folder
from prunekit.monitoring.running.run import watch_run
from prunekit.monitoring.running.source import Source
from tests.support.request_logs import history, write_log
from tests.support.warm import Warm


def test_a_growing_log_is_read_on(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    whole = write_log(tmp_path / "whole.jsonl", 1000, 3, kind="broken")
    watch_run([whole], made[0], tmp_path / "expected")
    data, growing = whole.read_bytes(), tmp_path / "log.jsonl"
    for end in (10, 30_000, 30_000, 100_005, len(data)):
        growing.write_bytes(data[:end])
        watch_run([growing], made[0], tmp_path / "watch")
    assert history(tmp_path / "watch") == history(tmp_path / "expected")


def test_rotated_logs_are_read_to_their_ends(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    lines = write_log(tmp_path / "whole.jsonl", 1000, 3).read_text().splitlines(keepends=True)
    watch_run([tmp_path / "whole.jsonl"], made[0], tmp_path / "expected")
    log = tmp_path / "log.jsonl"
    log.write_text("".join(lines[:230]))
    watch_run([log], made[0], tmp_path / "watch")
    with log.open("a") as handle:
        handle.writelines(lines[230:410])
    log.rename(tmp_path / "log.jsonl.2")
    (tmp_path / "log.jsonl.1").write_text("".join(lines[410:500]))
    log.write_text("".join(lines[500:]))
    os.utime(tmp_path / "log.jsonl.2", (1, 1))
    result = watch_run([log], made[0], tmp_path / "watch")
    assert history(tmp_path / "watch") == history(tmp_path / "expected") and not result.data["log"]["problems"]
    log.write_text("".join(lines[:60]))
    assert watch_run([log], made[0], tmp_path / "watch").data["log"]["problems"]["lost"]["lines"] == 1


def test_a_rotation_while_a_backlog_is_read_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"

    def write(file: Path, first: int, modified: int) -> None:
        file.write_text("".join(f'{{"id": "r{at}", "n_in": {at}}}\n' for at in range(first, first + 3)))
        os.utime(file, (modified, modified))

    def read(source: Source, meanwhile: Any) -> list[int | None]:
        got = []
        for request, _ in source.requests():
            got.append(request.n_in)
            if len(got) == 2:
                meanwhile()
        return got

    def source(problems: Problems) -> Source:
        write(log, 0, 1)
        before = Source([log], {}, Problems(), Seen())
        next(before.requests())
        log.rename(tmp_path / "log.jsonl.2")
        write(tmp_path / "log.jsonl.1", 3, 2)
        write(log, 6, 3)
        return Source([log], before.marks(), problems, Seen())

    def rotate() -> None:
        for old, new in ((".2", ".3"), (".1", ".2"), ("", ".1")):
            (tmp_path / f"log.jsonl{old}").rename(tmp_path / f"log.jsonl{new}")
        write(log, 9, 4)

    problems = Problems()
    rotated = source(problems)
    assert read(rotated, rotate) == [1, 2, 3, 4, 5, 6, 7, 8] and not problems.counts
    assert read(Source([log], rotated.marks(), problems, Seen()), lambda: None) == [9, 10, 11]
    for each in tmp_path.iterdir():
        each.unlink()
    assert read(source(problems), (tmp_path / "log.jsonl.1").unlink) == [1, 2, 6, 7, 8]
    assert problems.counts == {"lost": 1}


KILLED = """
import os, sys
from prunekit.monitoring.running import folder
written = 0
original = folder.Folder.write_state
def write_state(self, state):
    global written
    written += 1
    if written == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    original(self, state)
folder.Folder.write_state = write_state
from prunekit.monitoring.running import run
run._KEEP_EVERY = 0.0
run.watch_run(sys.argv[2:3], sys.argv[3], sys.argv[4])
"""


def test_a_killed_run_is_gone_on_with(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 600, 3)
    watch_run([log], made[0], tmp_path / "expected")
    killed = Warm(KILLED, ["5", str(log), str(made[0]), str(tmp_path / "watch")])
    assert killed.wait(120) == -signal.SIGKILL
    watch_run([log], made[0], tmp_path / "watch")
    assert history(tmp_path / "watch") == history(tmp_path / "expected")


def test_two_runs_in_one_folder_refuse_each_other(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 60, 3)
    with Folder(tmp_path / "watch").locked(), pytest.raises(PrunekitError, match="Another `prunekit watch run` works"):
        watch_run([log], made[0], tmp_path / "watch")
