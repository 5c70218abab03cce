"""One command on one spoiled input, in a forked process with limits, and what must hold whatever comes of it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 20
# Other work may keep the cores busy: a command that computes is held by its CPU time, one that waits by this.
WALL_SECONDS = 60
MEMORY = 2 << 30
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RAN_OUT = "Not enough memory"


@dataclass(frozen=True)
class Outcome:
    """How a command ended: ``code`` (negative: by that signal), peak bytes, what it wrote, and what was wrong."""

    code: int
    peak: int
    out: str
    err: str
    wrong: tuple[str, ...]


def run(arguments: list[str], here: Path, logs: Path) -> Outcome:
    """prunekit with ``arguments``, whose inputs lie in ``here``. Raises nothing: what is wrong is in the outcome."""
    before = listing(here)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, logs)
    status, usage, hung = _wait(child)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    out, err = ((logs / name).read_text("utf-8", "replace") for name in ("out", "err"))
    wrong = _wrong(code, usage.ru_maxrss << 10, out, err, hung)
    if _end_group(child):
        wrong.append("left a process behind")
    made = sorted(listing(here) - before)
    if code == 0:
        made = [name for name in made if name != "out" and not name.startswith(("out/", "out."))]
    if made:
        wrong.append(f"left {made[0]}")
    return Outcome(code, usage.ru_maxrss << 10, out, err, tuple(wrong))


def listing(here: Path) -> set[str]:
    """The names of all below ``here``, but for the cache."""
    names = (str(path.relative_to(here)) for path in here.rglob("*"))
    return {name for name in names if name != "cache" and not name.startswith("cache/")}


def _wrong(code: int, peak: int, out: str, err: str, hung: bool) -> list[str]:
    wrong = []
    if hung or code == -signal.SIGXCPU or code == -signal.SIGKILL:
        wrong.append("hung")
    elif code < 0:
        wrong.append(f"died of {signal.Signals(-code).name}")
    elif code not in (0, 2):
        wrong.append(f"ended with {code}")
    if peak > MEMORY or _RAN_OUT in err:
        wrong.append(f"took {peak >> 20} MiB")
    if "Traceback" in err or "Traceback" in out:
        wrong.append("traceback")
    if code == 2:
        lines = err.splitlines()
        if len(lines) != 1 or not lines[0].startswith("prunekit: ") or not lines[0].endswith("."):
            wrong.append("no single sentence")
    if _CONTROL.search(out) or _CONTROL.search(err):
        wrong.append("control characters")
    return wrong


def _be_the_command(arguments: list[str], logs: Path) -> None:
    code = 1
    try:
        os.setsid()
        for name, number in (("out", 1), ("err", 2)):
            handle = os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A fuse, well above what is allowed: the machine is not to be filled.
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (pages + 2 * MEMORY, pages + 2 * MEMORY))
        from prunekit.cli import main

        sys.argv = ["prunekit", *arguments]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    end = time.monotonic() + WALL_SECONDS
    pause = 0.002
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage, False
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage, True
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _end_group(group: int) -> bool:
    """Whether processes of the group are still there a moment later; they are ended."""
    for _ in range(20):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return True
