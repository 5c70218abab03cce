"""The processes of one launch: how they meet, wait for each other, and learn that one of them has failed.

Data goes through collectives of torch.distributed. Nobody waits in one: a process asks whether it is done, and between
two questions whether the others are well. So waiting has no limit while the others compute (one may write a large
checkpoint meanwhile), and ends within seconds where one has failed, and within two minutes where one is silent.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.utils.quiet import reason

if TYPE_CHECKING:
    import torch

# For processes to come; what they do before is to import torch.
_MEET = timedelta(minutes=5)
# For one collective: the group looks after its processes itself.
_LONGEST = timedelta(days=7)
# Seconds: between two signs of life, without one until a process counts as lost, between two looks at the others, and
# for the others to take notice where this process ends.
_BEAT, _SILENCE, _LOOK, _NOTICE = 5.0, 120.0, 0.5, 10.0
# A machine that is out of memory ends processes without a word.
_ENDED = (
    "Another of the {size} processes has ended and left no word; its output, or the launcher's, may say why. If the "
    "system ended it for lack of memory, start fewer processes, or give a smaller batch size."
)


class Group:
    """This process, the one of number ``rank`` among ``size``, and its ties to the others.

    ``device`` is where its models are. Raises PrunekitError where the others don't come, or can't be reached.
    """

    def __init__(self, rank: int, size: int, device: torch.device):
        import torch.distributed as dist

        if dist.is_initialized():
            raise PrunekitError(
                "This process has joined others already (torch.distributed is initialised); let prunekit do that, or "
                "start it without a launcher's environment."
            )
        self.rank, self.size, self.device = rank, size, device
        try:
            store, _, _ = next(iter(dist.rendezvous("env://", rank, size, timeout=_MEET)))
        except (RuntimeError, ValueError, OSError) as error:
            raise PrunekitError(
                f"Process {rank} of {size} could not meet the others ({reason(error)}); start all of them, and let "
                "MASTER_ADDR and MASTER_PORT name a port of the first one's machine that is free."
            ) from None
        self._store: Any = dist.PrefixStore("prunekit", store)
        self._seen: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        try:
            self._meet()
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST)
        except RuntimeError as error:
            self._over.set()
            raise PrunekitError(
                f"The {size} processes could not connect ({reason(error)}); name the network interface between their "
                "machines in GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME)."
            ) from None
        except PrunekitError:
            self._over.set()
            raise

    def finish(self, works: Iterable[Any]) -> None:
        """Wait until collectives are done. Raises PrunekitError, with the words of a process that failed, where they
        never will be."""
        for work in works:
            self._until(work.is_completed)
            try:
                work.wait()
            except RuntimeError:
                # A process that fails says so before its connections break.
                self._wait(lambda: self._failure() is not None, 3.0)
                raise self._lost() from None

    def fail(self, message: str, tell: Callable[[], None]) -> None:
        """Let the others end, because of ``message``. One process calls ``tell``: the first one, or where that doesn't
        take notice within seconds, this one."""
        if self._over.is_set():
            return
        with suppress(RuntimeError):
            if self._store.add("failures", 1) == 1:
                self._store.set("failed", json.dumps([self.rank, message]))
        if self.rank == 0 or not self._wait(lambda: self._store.check(["told"]), _NOTICE):
            tell()
        with suppress(RuntimeError):
            self._store.set("told", "")
            # Where the first process holds the store, the others couldn't read it any more.
            self._store.add("leaving", 1)
        if self.rank == 0:
            self._wait(lambda: self._store.add("leaving", 0) == self.size, _NOTICE / 2)
        self._over.set()

    def close(self) -> None:
        """Part from the others, all of which have come to the same point."""
        import torch.distributed as dist

        self._over.set()
        self._heart.join()
        dist.destroy_process_group()

    def _meet(self) -> None:
        self._store.add("here", 1)
        if not self._wait(lambda: self._store.add("here", 0) >= self.size, _MEET.total_seconds()):
            came = self._store.add("here", 0)
            raise PrunekitError(
                f"Only {came} of {self.size} processes came within {_MEET.total_seconds() / 60:.0f} minutes; start all "
                "of them at once."
            )

    def _beat(self) -> None:
        count = 0
        with suppress(RuntimeError):
            while not self._over.is_set():
                self._store.set(f"alive/{self.rank}", str(count))
                count += 1
                self._over.wait(_BEAT)

    def _until(self, ready: Callable[[], bool]) -> None:
        pause, looked = 5e-5, time.monotonic()
        while not ready():
            time.sleep(pause)
            pause = min(1.2 * pause, 0.01)
            if time.monotonic() - looked > _LOOK:
                try:
                    self._check()
                except RuntimeError:
                    # Whoever held the store is gone: because all is done, or too early.
                    if not ready():
                        raise self._lost() from None
                looked = time.monotonic()

    def _check(self) -> None:
        """Raises PrunekitError where another process has failed or is silent, RuntimeError without a store."""
        if self._failure() is not None:
            raise self._lost()
        now = time.monotonic()
        for other in range(self.size):
            key = f"alive/{other}"
            said = self._store.get(key).decode() if self._store.check([key]) else ""
            if other not in self._seen or said != self._seen[other][0]:
                self._seen[other] = said, now
            elif other != self.rank and now - self._seen[other][1] > _SILENCE:
                raise PrunekitError(
                    f"Process {other} of {self.size} has given no sign of life for {_SILENCE:.0f} seconds; see whether "
                    "its machine still runs and can be reached, and start again."
                )

    def _failure(self) -> tuple[int, str] | None:
        """Which process has failed first, and its words."""
        try:
            if not self._store.check(["failed"]):
                return None
            rank, message = json.loads(self._store.get("failed"))
            return int(rank), str(message)
        except RuntimeError:
            return None

    def _lost(self) -> PrunekitError:
        failure = self._failure()
        return PrunekitError(_ENDED.format(size=self.size) if failure is None else failure[1])

    def _wait(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Whether ``ready`` came true within so many seconds. False where the store can't be reached."""
        end = time.monotonic() + seconds
        with suppress(RuntimeError):
            while time.monotonic() < end:
                if ready():
                    return True
                time.sleep(0.02)
        return False
