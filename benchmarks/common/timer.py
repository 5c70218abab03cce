"""What the GPU check adds to prunekit.kernels.tuning.measure: recorded passes, bounded preparations, spreads with
units."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from prunekit.kernels.tuning.measure import Call, replayable
from prunekit.utils.timing import Summary


class OutOfTime(Exception):
    """A preparation took longer than it may."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block after ``seconds``. Only between bytecodes: a hanging kernel is the supervisor's."""

    def stop(signum: int, frame: object) -> None:
        raise OutOfTime(f"not ready after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and percentiles in microseconds, with their units in the names."""
    summary = Summary.of([value * 1e6 for value in seconds])
    return {
        "median_us": round(summary.median, 3),
        "p20_us": round(summary.p20, 3),
        "p80_us": round(summary.p80, 3),
        "count": summary.count,
    }


def one_pass(calls: Sequence[Call], device: torch.device) -> Call:
    """All calls one after the other as one call: on a GPU a CUDA graph, so that no time is the CPU's."""

    def plain() -> None:
        for call in calls:
            call()

    if device.type == "cuda":
        return replayable(plain, device)
    plain()
    return plain
