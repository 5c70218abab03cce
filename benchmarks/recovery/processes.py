"""One prunekit command in a process of its own: what it told, and what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.utils.process.child import environment, python_command


@dataclass(frozen=True)
class Ended:
    """``told`` are the JSON objects on its standard output in turn, those of earlier processes that kept the same log
    among them; seconds and memory are the last process's own."""

    code: int
    told: list[Any]
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    error: str


def run(arguments: Sequence[str], log: Path) -> Ended:
    """Run `prunekit` with ``arguments``, which ask for JSON. What it prints is added to ``log``."""
    command = python_command(module="prunekit", arguments=[*arguments])
    began = time.perf_counter()
    with log.open("a", encoding="utf-8") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=out, stderr=said, env=environment())
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        error = said.read().strip()[-500:]
    scale = 1 if sys.platform == "darwin" else 1024
    cpu = usage.ru_utime + usage.ru_stime
    told = list(objects(log.read_text(encoding="utf-8")))
    return Ended(process.returncode, told, seconds, cpu, usage.ru_maxrss * scale, error)


def objects(text: str) -> Iterator[Any]:
    """The JSON objects that stand in ``text`` one after the other; one that a killed process left unfinished is passed
    over."""
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except ValueError:
            place = text.find("\n{", place) + 1 or -1
            continue
        yield found
        place = text.find("{", end)
