"""Processes of their own that need not import torch and transformers, which takes four seconds of a core each.

A server imports them once and forks: what it forks has computed nothing, knows nothing of the tests' process, and ends
as any Python does. What is about imports themselves needs a process that begins with none.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).parents[2]


class Warm:
    """A process that runs ``code`` as ``python -c`` does, with what is needed here of :class:`subprocess.Popen`. What
    is written to ``stderr`` can be read, unless it is given as the number of an open file."""

    def __init__(
        self,
        code: str,
        arguments: list[str],
        *,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        stderr: int | None = None,
    ):
        self.returncode: int | None = None
        self.args = arguments
        request = {"code": code, "arguments": arguments, "cwd": str(cwd or Path.cwd()), "env": env or {**os.environ}}
        out, self.stdout = _pipe()
        err, self.stderr = _pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        self._told, caller = socket.socketpair()
        files = [nothing, out, err if stderr is None else stderr, caller.fileno()]
        socket.send_fds(_server(), [json.dumps(request).encode()], files)
        for each in (nothing, out, err):
            os.close(each)
        caller.close()
        self.pid = self._hear()

    def _hear(self) -> int:
        said = self._told.recv(4, socket.MSG_WAITALL)
        assert len(said) == 4, "the server that starts processes has ended"
        return int.from_bytes(said, "little", signed=True)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = self._hear()
            self._told.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            select.select([self._told], [], [], timeout)
        if (ended := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return ended

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of both outputs, when the process has ended. Where that takes longer, it is killed."""
        with ThreadPoolExecutor(2) as readers:
            read = [readers.submit(each.read) for each in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            out, err = (each.result() for each in read)
        self.stdout.close()
        self.stderr.close()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()


def _pipe() -> tuple[int, IO[str]]:
    reading, writing = os.pipe()
    return writing, open(reading)


@functools.cache
def _server() -> socket.socket:
    """Where processes are asked for. The server ends with this process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm_server", str(there.fileno())],
        pass_fds=[there.fileno()],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    there.close()
    return here
