"""benchmarks/common/spent.py: what a command takes is its own, and not that of who measures it."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from benchmarks.common.spent import run_measured

PYTHON = [sys.executable, "-I", "-S", "-c"]


def test_memory_of_who_measures_is_not_counted() -> None:
    ours = bytearray(os.urandom(1)) * (256 << 20)
    code, spent = run_measured([*PYTHON, "pass"])
    assert code == 0 and 0 < spent.peak_bytes < 64 << 20 < len(ours)


def test_seconds_and_memory_of_the_command() -> None:
    work = "held = bytearray(128 << 20)\nfor _ in range(3_000_000): pass"
    code, spent = run_measured([*PYTHON, work])
    assert code == 0 and spent.peak_bytes > 128 << 20
    assert 0 < spent.cpu_seconds <= spent.seconds + 0.2


@pytest.mark.parametrize(
    ("work", "code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)]
)
def test_how_it_ended(work: str, code: int) -> None:
    assert run_measured([*PYTHON, work])[0] == code


def test_who_measures_was_killed() -> None:
    with pytest.raises(ChildProcessError, match="was ended"):
        run_measured([*PYTHON, "import os; os.kill(os.getppid(), 9)"])
