"""Runs a command and watches how much memory it and its children take."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from prunekit.utils.process.child import environment, python_command

_EVERY_S = 0.02


@dataclass(frozen=True)
class Watched:
    """``peak_bytes``: the most that was resident at once in the process and its children, pages of mapped files among
    them (those that two of them share count twice); seen every 20 ms. ``own_peak_bytes``: the same without mapped
    files, which the system can drop."""

    code: int
    seconds: float
    peak_bytes: int
    own_peak_bytes: int
    out: str
    error: str


def watch(arguments: list[str], log: Path) -> Watched:
    """Run `prunekit` with ``arguments``; what it says to its user goes to ``log``."""
    command = python_command(module="prunekit", arguments=arguments)
    peak = own = 0
    begin = time.perf_counter()
    with log.open("w+", encoding="utf-8") as said, log.with_suffix(".out").open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=said, env=environment())
        root = psutil.Process(process.pid)
        while process.poll() is None:
            now, now_own = _resident(root)
            peak, own = max(peak, now), max(own, now_own)
            time.sleep(_EVERY_S)
        seconds = time.perf_counter() - begin
        said.seek(0)
        out.seek(0)
        return Watched(process.returncode, seconds, peak, own, out.read(), said.read())


def _resident(root: psutil.Process) -> tuple[int, int]:
    whole = own = 0
    try:
        for each in (root, *root.children(recursive=True)):
            told = each.memory_info()
            whole += told.rss
            own += told.rss - told.shared
    except psutil.Error:  # it has ended meanwhile
        pass
    return whole, own
