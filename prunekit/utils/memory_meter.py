"""The most memory that is taken between two moments: of this process, or of a GPU."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from prunekit.utils.measuring.resident import peak_bytes, reset_peak, resident_bytes

_EVERY = 0.002


class Meter(ABC):
    """:meth:`start` before a model is loaded, :meth:`reset` once it is, :meth:`peak` after it has run."""

    @abstractmethod
    def start(self) -> None:
        """What is taken now is not the model's."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the peak so far: loading may take more than serving holds."""

    @abstractmethod
    def peak(self) -> int | None:
        """The most bytes taken since :meth:`reset`, less those at :meth:`start`. None where the system doesn't tell."""


class Resident(Meter):
    """Resident memory of this process."""

    def start(self) -> None:
        self._before = resident_bytes()

    def reset(self) -> None:
        reset_peak()

    def peak(self) -> int | None:
        most = peak_bytes()
        return None if most is None or self._before is None else most - self._before


class DeviceMemory(Meter):
    """Memory of a GPU by the driver's own count, whichever library takes it: the runtimes' allocators tell of
    themselves alone, or of nothing. Of all processes, so it means something where no other one uses the GPU.

    ``taken`` gives the bytes in use; the default asks CUDA. It is sampled in a thread, for what runtimes free again is
    seen by nobody else.
    """

    def __init__(self, device: str, taken: Callable[[], int] | None = None, every: float = _EVERY):
        self._taken = taken or (lambda: _taken(device))
        self._every = every
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._most = 0

    def start(self) -> None:
        # The first call makes CUDA's context, which is none of the model's memory.
        self._taken()
        self._before = self._taken()

    def reset(self) -> None:
        self._most = self._taken()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._most = max(self._most, self._taken())

    def peak(self) -> int | None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return max(self._most, self._taken()) - self._before


def _taken(device: str) -> int:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free
