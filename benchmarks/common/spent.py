"""What a command takes: seconds, CPU seconds, memory. Of the standard library alone, to be a process of its own.

Linux counts the memory of the process that starts a command as the least peak of that command (``ru_maxrss`` is kept
over exec). So who measures must be small: :func:`run_measured` has a process of this file start the command.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any


@dataclass(frozen=True)
class Spent:
    """``seconds`` by the clock, ``cpu_seconds`` of all cores together, ``peak_bytes`` of memory. ``load`` says how many
    processes wanted a core, on average of the last minute."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    load: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_measured(
    command: Sequence[str],
    *,
    out: IO[str] | int | None = None,
    error: IO[str] | int | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[int, Spent]:
    """Run ``command``: how it ended (less than 0: the signal that killed it), and what it took."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as told:
        # -I -S: nothing is imported but what stands here, and nothing of the folder one works in.
        apart = [sys.executable, "-I", "-S", __file__, told.name, *command]
        process = subprocess.Popen(apart, stdout=out, stderr=error, env=env)
        try:
            process.wait()
        except KeyboardInterrupt:  # Ctrl-C reached the command too, which may have something to finish
            process.wait()
            raise
        found = told.read()
    if not found:
        raise ChildProcessError(f"what measures {command[0]} was ended ({process.returncode})")
    row = json.loads(found)
    return row["code"], Spent(**row["spent"])


def _measure(told: str, command: Sequence[str]) -> None:
    if sys.platform == "linux":  # A benchmark that is killed takes its command along.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    started = time.perf_counter()
    process = subprocess.Popen(command)
    # Ctrl-C is for the command, which gets it too and may have something to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    spent = Spent(
        round(seconds, 1),
        round(usage.ru_utime + usage.ru_stime, 1),
        usage.ru_maxrss * scale,
        round(os.getloadavg()[0], 1),
    )
    with open(told, "w", encoding="utf-8") as file:
        json.dump({"code": process.returncode, "spent": spent.to_dict()}, file)


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2:])
