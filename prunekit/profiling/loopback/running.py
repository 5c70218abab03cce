"""A server's process: started, waited for, and ended whatever happens."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.profiling.loopback.commands import HOST
from prunekit.utils.names import pathless, printable
from prunekit.utils.process.child import end
from prunekit.utils.process.stopping import undisturbed

_PAUSE = 0.1
_ASK_SECONDS = 5.0
_LAST_LINES, _TAIL_BYTES, _LONGEST_LINE = 3, 1 << 14, 300
# What all servers' libraries say for EADDRINUSE.
_TAKEN = "address already in use"


class PortTaken(PrunekitError):
    """Another program listens on the port that a server was to take."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as tried:
        tried.bind((HOST, 0))
        return int(tried.getsockname()[1])


def check_port(port: int) -> None:
    """Raises PrunekitError where ``port`` is none, or somebody listens there."""
    if not 1 <= port <= 65535:
        raise PrunekitError(f"A port is a number from 1 to 65535, or 0 for a free one; got {port}.")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise PrunekitError(
                f"Port {port} of {HOST} can't be used: {error.strerror or error}. Name another, or 0 for a free one."
            ) from None


@contextmanager
def running(argv: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of ``argv`` while the block runs, in a group of its own. What it writes is added to ``log``.

    It and all it started are ended when the block is left in whatever way; on Linux also where this process is killed.
    Raises PrunekitError where it can't be started.
    """
    try:
        with log.open("ab") as written:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=os.name == "posix",
            )
    except OSError as error:
        raise PrunekitError(f"A server can't be started: {printable(str(error))}.") from None
    try:
        yield process
    finally:
        with undisturbed():
            end(process)


def wait_until_ready(
    process: subprocess.Popen[bytes], port: int, path: str, log: Path, limit: float, name: str
) -> None:
    """Return once ``path`` answers 200. Raises PrunekitError, with the last lines that the server wrote, where it ends
    before, or ``limit`` seconds are not enough; :class:`PortTaken` where somebody else got the port."""
    begin = time.monotonic()
    while True:
        ready = _answers(port, path)
        # Asked second: what answers may be another program, for which this one had to give up.
        if process.poll() is not None:
            words = said(log)
            error = PortTaken if _TAKEN in words.lower() else PrunekitError
            raise error(f"{name} {_ending(process.returncode)} before it was ready{words}")
        if ready:
            return
        if time.monotonic() - begin > limit:
            raise PrunekitError(f"{name} was not ready within {limit:g} s{said(log)}")
        time.sleep(_PAUSE)


def _ending(code: int) -> str:
    return f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"


def said(log: Path) -> str:
    """The end of a sentence: the last lines of a server's log, without folders of this machine."""
    try:
        with log.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(0, size - _TAIL_BYTES))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    last = [pathless(printable(line.strip()))[:_LONGEST_LINE] for line in lines if line.strip()][-_LAST_LINES:]
    return f"; its last lines: {' | '.join(last)}" if last else "; it wrote nothing."


def _answers(port: int, path: str) -> bool:
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(HOST, port, timeout=_ASK_SECONDS)
        with closing(connection):
            connection.request("GET", path)
            return connection.getresponse().status == 200
    return False
