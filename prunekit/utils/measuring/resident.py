"""Resident memory of this process, now and at most; of the standard library alone, for `bench.py` of exports has it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int | None:
    """Resident memory of this process now, or None where the system doesn't say."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Forget the peak of this process's resident memory so far, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Peak resident memory of this process since it began or since :func:`reset_peak`; None where unknown."""
    # On Linux the figure of getrusage counts the memory of the program that started this one.
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
