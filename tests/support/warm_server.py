"""Imports what most commands import, and becomes a process for each that is asked for on the socket that its argument
numbers. See :mod:`tests.support.warm`."""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any

# What `prunekit prune` of a Llama loads, and what takes longest of it.
import transformers.models.llama.modeling_llama  # noqa: F401

import prunekit.pipeline  # noqa: F401

LONGEST = 1 << 20


def serve(asked: socket.socket) -> dict[str, Any]:
    """Fork for each request, and tell its caller the process's number and later how it ended. Returns in the forked
    processes, with what was asked; ends where nobody can ask any more."""
    waking, woken = socket.socketpair()
    for each in (waking, woken):
        each.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    callers: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([asked, waking], [], [])
        if waking in ready:
            waking.recv(LONGEST)
            for pid in [*callers]:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    tell(callers[pid], os.waitstatus_to_exitcode(status))
                    os.close(callers.pop(pid))
        if asked in ready:
            message, files, _, _ = socket.recv_fds(asked, LONGEST, 4)
            if not message:
                sys.exit()
            *standard, caller = files
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for each in (signal.SIGCHLD, signal.SIGINT):
                    signal.signal(each, signal.SIG_DFL)
                for number, file in enumerate(standard):
                    os.dup2(file, number)
                for end in (asked, waking, woken):
                    end.close()
                for file in (*files, *callers.values()):
                    os.close(file)
                return dict(json.loads(message))
            for file in standard:
                os.close(file)
            callers[pid] = caller
            tell(caller, pid)


def tell(caller: int, number: int) -> None:
    os.write(caller, number.to_bytes(4, "little", signed=True))


def become(request: dict[str, Any]) -> None:
    """What `python -c CODE ARGUMENTS` is when it begins."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-c", *request["arguments"]]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False, errors="backslashreplace")  # type: ignore[misc]  # noqa: SIM115
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What was imported is looked at no more, until a process ends and tells what it never let go of.
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
