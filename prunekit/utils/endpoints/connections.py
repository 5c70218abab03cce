"""How many connections this process may hold at a time."""

from __future__ import annotations

import errno

MOST_CONNECTIONS = 2000
# The kind of an error that is the client's own, and no word of the server.
NO_FILES = "too many open files"
# For what else is open: files, the loop's own, a connection that is being closed.
_OTHERS = 100


def connections(clients: int) -> int:
    """How many connections each of ``clients`` may hold within this process's limit of open files."""
    try:
        import resource
    except ImportError:
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, (soft - _OTHERS) // clients))


def is_no_files(error: BaseException) -> bool:
    """Whether ``error`` says that this process, or this machine, can open no more files."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
