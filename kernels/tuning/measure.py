"""Times of several ways to do the same, taken in turns on random data that the caches can't hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from prunekit.utils.timing import turns

Call = Callable[[], Any]

# A timed stretch is at least this long: events cost a few microseconds, and the goals are about 3 %.
STRETCH_S = 2e-3
MOST_COPIES = 64


class Data:
    """Makes random tensors and counts their bytes. Never zeros: a GPU draws less power on them, and runs faster."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0):
        self.device, self.dtype, self.bytes = device, dtype, 0
        # Tensors on meta hold nothing, so that nothing is drawn for them.
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normally distributed, in the dtype of the data unless another is given."""
        values = torch.randn(*shape, generator=self._generator, device=self.device, dtype=torch.float32)
        made = values.mul_(scale).to(dtype or self.dtype)
        self.bytes += made.numel() * made.element_size()
        return made


def copies(bytes_of_one: int, device: torch.device) -> int:
    """How many copies of the data are more than twice what the L2 cache holds; at least 2."""
    if device.type != "cuda":
        return 2
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(MOST_COPIES, 2 * cache // max(1, bytes_of_one) + 1))


def replayable(call: Call, device: torch.device) -> Call:
    """The call, on a GPU recorded in a CUDA graph, so that what is measured is the GPU's time and not Python's."""
    if device.type != "cuda":
        return call
    # Libraries choose kernels and allocate workspaces in the first runs, which can't be recorded.
    for _ in range(2):
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(call: Call = call) -> None:
        # The graph knows the tensors of the call only by their addresses: they must live as long as it does.
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
    calls: Mapping[str, Call], device: torch.device, *, rounds: int = 20, most_s: float = 5.0
) -> dict[str, list[float]]:
    """Seconds of one call of each, ``rounds`` times in turns; whole rounds fewer where ``most_s`` passes."""
    repeats = dict.fromkeys(calls, 1)
    if device.type == "cuda":
        for name, call in calls.items():
            seconds_of(call, 1, device)  # the first replay of a graph also loads it
            repeats[name] = max(1, min(1000, round(STRETCH_S / max(seconds_of(call, 1, device), 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for position, name in enumerate(turns(list(calls), rounds)):
        # Stops after whole rounds only, so that every call has as many values.
        if position and position % len(calls) == 0 and time.perf_counter() - begin > most_s:
            break
        times[name].append(seconds_of(calls[name], repeats[name], device))
    return times


def in_turns(
    calls: Mapping[str, Call], device: torch.device, rounds: int = 20, most_s: float = 1.0
) -> dict[str, float]:
    """The medians of :func:`interleaved`."""
    times = interleaved(calls, device, rounds=rounds, most_s=most_s)
    return {name: median(values) for name, values in times.items()}
