"""What else a machine does while something is measured.

Standard library only: bench.py of an export carries this text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Load:
    """In ``seconds`` on ``cpus`` (those that this process may use): CPUs that other processes kept busy on average
    (``others``), that the host of a virtual machine took (``stolen``), and that this process and its children used
    (``own``); pages that went from or to swap (``swapped``); the share of the CPUs' time in which a container's limit
    held its processes back (``throttled``); the system's load average of the last minute. None is what the system does
    not tell."""

    seconds: float
    cpus: int
    others: float | None
    stolen: float | None
    own: float | None
    swapped: int | None
    throttled: float | None
    load_average: float | None


@dataclass(frozen=True)
class Counters:
    """Counters since the machine began: seconds of all allowed CPUs together, of this process, and pages."""

    wall: float
    cpus: int
    busy: float | None
    stolen: float | None
    own: float | None
    swapped: int | None
    throttled: float | None


def read_counters(clock: Callable[[], float] = time.monotonic, proc: Path = Path("/proc")) -> Counters:
    """The counters now. What the system doesn't have is None."""
    cpus = _allowed()
    busy, stolen = _cpu_seconds(proc, cpus)
    return Counters(clock(), len(cpus), busy, stolen, _own_seconds(proc), _swapped(proc), _throttled())


def between(before: Counters, after: Counters) -> Load:
    """What happened between two readings."""
    seconds = max(after.wall - before.wall, 1e-9)
    stolen, own = (_rate(getattr(before, name), getattr(after, name), seconds) for name in ("stolen", "own"))
    busy, throttled = (_rate(getattr(before, name), getattr(after, name), seconds) for name in ("busy", "throttled"))
    # Counters go in ticks of ten milliseconds, so a difference may be a little below nothing.
    others = None if busy is None or own is None else max(0.0, busy - own)
    swapped = None if before.swapped is None or after.swapped is None else max(0, after.swapped - before.swapped)
    # Each CPU on which processes wait counts.
    throttled = None if throttled is None else throttled / after.cpus
    try:
        average: float | None = os.getloadavg()[0]
    except (OSError, AttributeError):
        average = None
    return Load(seconds, after.cpus, others, stolen, own, swapped, throttled, average)


def load_during(seconds: float) -> Load:
    """The load while this process waits."""
    before = read_counters()
    time.sleep(seconds)
    return between(before, read_counters())


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else max(0.0, after - before) / seconds


def usable_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many CPUs this process may use at once: those that it is bound to, and no more than its container allows."""
    limits = [len(_allowed())]
    # cgroup v2 tells "200000 100000" or "max 100000"; v1 has a file for each, and -1 for no limit.
    told = [line.split() for line in _lines(root / "cpu.max")]
    told.append([*_lines(root / "cpu" / "cpu.cfs_quota_us"), *_lines(root / "cpu" / "cpu.cfs_period_us")])
    for words in told:
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            limits.append(-(-int(words[0]) // int(words[1])))
    return max(1, min(limits))


def _allowed() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return set(range(os.cpu_count() or 1))


def _ticks() -> int:
    return int(os.sysconf("SC_CLK_TCK"))


def _cpu_seconds(proc: Path, cpus: set[int]) -> tuple[float | None, float | None]:
    """Seconds in which ``cpus`` did something for this system, and in which the host took them."""
    busy = stolen = 0.0
    found = False
    for line in _lines(proc / "stat"):
        name, _, rest = line.partition(" ")
        if not name.startswith("cpu") or not name[3:].isdigit() or int(name[3:]) not in cpus:
            continue
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
        ticks = [int(each) for each in rest.split()[:8]]
        busy += sum(ticks[:3]) + sum(ticks[5:7])
        stolen += ticks[7] if len(ticks) > 7 else 0
        found = True
    return (busy / _ticks(), stolen / _ticks()) if found else (None, None)


def _own_seconds(proc: Path) -> float | None:
    """CPU seconds of this process and all that it has started, whatever these have started in turn."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    try:
        entries = [entry for entry in os.listdir(proc) if entry.isdigit()]
    except OSError:
        entries = []
    for entry in entries:
        for line in _lines(proc / entry / "stat"):
            # The name stands in brackets and may hold anything.
            fields = line.rpartition(")")[2].split()
            parents[int(entry)] = int(fields[1])
            # utime, stime, and those of children that have ended.
            seconds[int(entry)] = sum(map(int, fields[11:15])) / _ticks()
    me = os.getpid()
    if me not in parents:
        return None
    return sum(spent for each, spent in seconds.items() if _descends(each, me, parents))


def _descends(each: int, from_whom: int, parents: dict[int, int]) -> bool:
    for _ in range(len(parents)):
        if each == from_whom:
            return True
        if each not in parents:
            return False
        each = parents[each]
    return False


def _swapped(proc: Path) -> int | None:
    pages = [int(line.split()[1]) for line in _lines(proc / "vmstat") if line.startswith(("pswpin ", "pswpout "))]
    return sum(pages) if pages else None


def _throttled(file: Path = Path("/sys/fs/cgroup/cpu.stat")) -> float | None:
    """Seconds in which the limit of this container held it back (cgroup v2)."""
    for line in _lines(file):
        if line.startswith("throttled_usec "):
            return int(line.split()[1]) / 1e6
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
