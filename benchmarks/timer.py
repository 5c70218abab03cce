"""Times of several arms taken in turns, so that a drift of the machine favours none of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from prunekit.timing import Summary

Call = Callable[[], Any]

# A timed stretch is at least this long: events cost a few microseconds, and the goals are about 3 %.
STRETCH_S = 2e-3


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


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """A B C C B A A B C …: forth and back, ``rounds`` times each."""
    for turn in range(rounds):
        yield from names if turn % 2 == 0 else reversed(names)


def one_pass(calls: Sequence[Call], device: torch.device) -> Call:
    """All calls one after the other as one call: on a GPU a CUDA graph, so that no time is the CPU's."""

    def plain() -> None:
        for call in calls:
            call()

    plain()
    if device.type != "cuda":
        return plain
    # Twice before it is recorded: libraries pick kernels and allocate workspaces on the first runs.
    plain()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plain()

    def replay(calls: Sequence[Call] = calls) -> None:
        # The graph knows the tensors of the calls only by their addresses: they must live as long as it does.
        graph.replay()

    return replay


def seconds_of(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds of one call, the mean of ``repeats`` that follow each other."""
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def interleaved(
    arms: Mapping[str, Call], device: torch.device, *, rounds: int = 20, most_s: float = 5.0
) -> dict[str, list[float]]:
    """Seconds of one call of every arm, ``rounds`` times each in turns; fewer rounds where ``most_s`` would pass."""
    repeats = dict.fromkeys(arms, 1)
    if device.type == "cuda":
        for name, call in arms.items():
            seconds_of(call, 1, device)  # the first replay of a graph also loads it
            repeats[name] = max(1, min(1000, round(STRETCH_S / max(seconds_of(call, 1, device), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in arms}
    begin = time.perf_counter()
    for position, name in enumerate(turns(list(arms), rounds)):
        # Stops after whole rounds only, so that every arm has as many values.
        if position and position % len(arms) == 0 and time.perf_counter() - begin > most_s:
            break
        times[name].append(seconds_of(arms[name], repeats[name], device))
    return times
