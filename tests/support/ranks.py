"""Several processes as a launcher starts them, on this machine's CPU: copies of this one, which need no second to
start."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed import TCPStore

from prunekit.cli import main
from tests.support.command import Ended, with_method

# What takes longer hangs: it tells where, and is ended. A busy disk makes checkpoints slow, so this is long.
_SECONDS = 150.0
_TOLD_BEFORE = 5.0


def run_ranks(size: int, work: Callable[[], object]) -> list[Ended]:
    """``work`` on ``size`` ranks at once, which may :func:`~prunekit.utils.process.ranks.join`. How each ended: its
    exit code (1 and a traceback on stderr for an exception) and what it wrote."""
    # The port is the system's choice and is held from here on, so that no other test can take it.
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    told = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [[Path(folder, f"{rank}-{name}") for name in ("out", "err")] for rank in range(size)]
        children = [_fork(work, {**told, "RANK": rank, "LOCAL_RANK": rank}, files[rank]) for rank in range(size)]
        codes = _codes(children)
        said = [[file.read_text() for file in some] for some in files]
    return [Ended(code, *texts) for code, texts in zip(codes, said, strict=True)]


def _fork(work: Callable[[], object], told: dict[str, object], files: list[Path]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update({name: str(value) for name, value in told.items()})
        faulthandler.dump_traceback_later(_SECONDS - _TOLD_BEFORE, file=2)
        # Threads don't come along into a copy.
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _codes(children: list[int]) -> list[int]:
    """Wait for all; what takes too long is ended."""
    end = time.monotonic() + _SECONDS
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def command_on_ranks(size: int, *arguments: object) -> list[Ended]:
    """A command of prunekit on ``size`` ranks, or where that is 1 in a process of its own."""

    def work() -> None:
        if size == 1:
            for name in ("RANK", "WORLD_SIZE"):
                del os.environ[name]
        sys.argv[:] = ["prunekit", *with_method(arguments)]
        main()

    return run_ranks(size, work)
