"""Turns go on until the range is narrow or the time is up; under load the figures say that they are not to be
believed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from prunekit.models.runner import Decoded
from prunekit.profiling.turns import MOST_TURNS, Until, take_turns
from prunekit.utils.measuring.load import Counters, load_during, read_counters, usable_cpus


class Machine:
    """A clock that only runs move on, and models of known speed: ``noise(turn)`` is a factor of the pruned model's."""

    def __init__(self, noise=lambda turn: 1.0, seconds=1.0):
        self.time, self.order, self.noise, self.seconds = 0.0, [], noise, seconds

    def run(self, index: int) -> Decoded:
        turn = self.order.count(index)
        self.order.append(index)
        factor = 0.8 * self.noise(turn) if index else 1.0
        self.time += self.seconds * factor
        return Decoded(None, 0.5 * factor, 0.1 * factor)

    def counters(self) -> Counters:
        return Counters(self.time, 2, 2 * self.time, 0.0, self.time, 0, 0.0)

    def turns(self, until: Until):
        return take_turns(self.run, until, "Timing", now=lambda: self.time, counters=self.counters)


def test_steady_runs_end_at_the_smallest_number() -> None:
    machine = Machine()
    made = machine.turns(Until(10, 600))
    assert made.stopped == "narrow" and len(machine.order) == 20
    assert machine.order[:8] == [0, 1, 1, 0, 0, 1, 1, 0]
    assert made.ttft[1] == [0.4] * 10 and made.tpot[0] == [0.1] * 10


def test_a_wide_range_takes_more_turns_until_it_is_narrow() -> None:
    """Six turns that differ by 20 %, then steady ones."""
    machine = Machine(lambda turn: (0.9, 1.1)[turn % 2] if turn < 6 else 1.0)
    made = machine.turns(Until(6, 600))
    assert made.stopped == "narrow"
    count = len(made.ttft[0])
    assert 10 < count < 60 and count % 2 == 0
    # Still forth and back, so that a drift favours none.
    assert machine.order == [0, 1, 1, 0] * (count // 2)


def test_the_time_is_up() -> None:
    machine = Machine(lambda turn: (0.8, 1.2)[turn % 2])
    made = machine.turns(Until(4, 60))
    assert made.stopped == "time"
    # A round of two turns takes about 3.6 s and is not begun behind the end.
    assert 60 <= machine.time < 64


def test_a_fixed_number_of_turns_and_the_most_turns() -> None:
    wide = Machine(lambda turn: (0.5, 2.0)[turn % 2])
    assert wide.turns(Until(3, 0)).stopped == "fixed" and wide.order == [0, 1, 1, 0, 0, 1]
    endless = Machine(lambda turn: (0.5, 2.0)[turn % 2], seconds=0.0)
    made = endless.turns(Until(2, 60))
    assert made.stopped == "most" and len(made.ttft[0]) == MOST_TURNS


def test_after_an_odd_number_of_turns_the_other_one_begins() -> None:
    machine = Machine(lambda turn: (0.8, 1.2)[turn % 2])
    machine.turns(Until(3, 8))
    assert machine.order == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1] + [1, 0, 0, 1] * ((len(machine.order) - 10) // 4)


def test_others_at_work_are_told() -> None:
    machine = Machine()
    made = machine.turns(Until(6, 0))
    # Of two CPUs one is ours and one somebody else's.
    assert made.load is not None and made.load.others == pytest.approx(1.0)
    (doubt,) = made.doubts
    assert doubt.flag == "load" and "1.00 of 2 CPUs" in doubt.why


@contextmanager
def busy(count: int) -> Iterator[None]:
    """``count`` processes that compute without end. Not children of this one in what is counted as its own: they are
    started by a process that ends, as somebody else's are."""
    # Should anything go wrong here, they end by themselves.
    loop = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    code = (
        "import subprocess, sys\nnull = subprocess.DEVNULL\n"
        f"loop = [sys.executable, '-c', {loop!r}]\n"
        f"print(*[subprocess.Popen(loop, stdin=null, stdout=null, stderr=null).pid for _ in range({count})])"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split()
    try:
        yield
    finally:
        for pid in started:
            os.kill(int(pid), 9)


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system tells no load")
def test_real_busy_loops_are_seen_and_own_work_is_not() -> None:
    cpus = len(os.sched_getaffinity(0))
    with busy(cpus):

        def run(index: int) -> Decoded:
            # Work of this process beside them.
            matrix = np.ones((200, 200))
            for _ in range(20):
                matrix = matrix @ matrix / 200
            return Decoded(None, 1.0 - 0.2 * index, 1.0 - 0.2 * index)

        def second() -> None:
            load_during(0.2)

        made = take_turns(lambda index: (second(), run(index))[1], Until(3, 0), "Timing")
    assert made.load is not None and made.load.others is not None and made.load.own is not None
    assert made.load.others > 0.4 * cpus
    assert "load" in [each.flag for each in made.doubts]
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        # On a busy machine it gets little: as much as it got counts as this process's own.
        before, spent = read_counters(), psutil.Process(child.pid).cpu_times().user
        for _ in range(100):
            load_during(0.1)
            if (got := psutil.Process(child.pid).cpu_times().user - spent) > 0.1:
                break
        after = read_counters()
    finally:
        child.kill()
        child.wait()
    assert after.own is not None and before.own is not None
    assert after.own - before.own >= got - 0.03


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 4),
        ({"cpu.max": "100000 0"}, 4),
        ({"cpu.max": "what is this"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cpus_are_those_that_the_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 4, 6})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_cpus(tmp_path) == cpus
