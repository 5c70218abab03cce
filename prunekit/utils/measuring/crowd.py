"""Whether other programs want the CPUs that a long run counts on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from prunekit.utils.measuring.doubts import OTHERS
from prunekit.utils.measuring.load import Load, between, read_counters
from prunekit.utils.process import ranks

T = TypeVar("T")

# In less time than this, the counters' ticks of ten milliseconds tell too little.
_SHORTEST = 1.0


def watched(work: Callable[[], T], device: torch.device) -> tuple[T, str | None]:
    """What ``work`` returns, and the sentence of :func:`crowded` on what else the machine did meanwhile. None on other
    devices than a CPU, and with several processes, which would take each other for other programs."""
    before = read_counters()
    made = work()
    if device.type != "cpu" or ranks.size() > 1:
        return made, None
    return made, crowded(between(before, read_counters()), torch.get_num_threads())


def crowded(load: Load, threads: int) -> str | None:
    """A sentence where other programs kept CPUs busy which ``threads`` of this one want too. The threads of one product
    wait for the slowest of them, so that more of them than CPUs are free take longer than fewer."""
    if load.others is None or load.seconds < _SHORTEST or load.others <= OTHERS * load.cpus:
        return None
    free = max(1, round(load.cpus - load.others))
    if threads <= free:
        return None
    return (
        f"Other programs kept {load.others:.1f} of {load.cpus} CPUs busy meanwhile, and the {threads} threads of this "
        f"one wait for each other. Stop them, or start it again with OMP_NUM_THREADS={free}, which may be faster."
    )
