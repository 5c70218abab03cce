"""A prunekit command in a process of its own, and what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from prunekit.utils.process.child import environment, python_command


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


def measured(arguments: Sequence[object], more: Mapping[str, str] | None = None) -> tuple[Any, Spent]:
    """What a prunekit command prints as JSON, and what it took; ``more`` is added to its environment.

    Raises subprocess.CalledProcessError, with what it said on stderr, where it fails.
    """
    command = [*map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as out:
        code, said, spent = timed(command, out, more)
        if code:
            raise subprocess.CalledProcessError(code, command, stderr=said)
        out.seek(0)
        text = out.read()
    return json.loads(text[text.index("{") :]), spent


def timed(arguments: Sequence[str], out: IO[str], more: Mapping[str, str] | None = None) -> tuple[int, str, Spent]:
    """Run `prunekit` with ``arguments``, which prints to ``out``: how it ended, what it said on stderr, and what it
    took."""
    command = python_command(module="prunekit", arguments=[*arguments])
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=said, env={**environment(), **(more or {})})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        error = said.read()
    scale = 1 if sys.platform == "darwin" else 1024
    spent = Spent(
        round(seconds, 1),
        round(usage.ru_utime + usage.ru_stime, 1),
        usage.ru_maxrss * scale,
        round(os.getloadavg()[0], 1),
    )
    return process.returncode, error, spent
