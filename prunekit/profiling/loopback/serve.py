"""A model behind HTTP on this machine alone, for the length of a block.

with served("smaller-gguf/", threads=1) as server:
    print(server.url, server.model, server.identity.to_dict())
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.profiling.loopback.commands import HOST, Command, Wanted, command_of, server_environment
from prunekit.profiling.loopback.installed import check_installed
from prunekit.profiling.loopback.models import Opened, opened
from prunekit.profiling.loopback.running import PortTaken, check_port, free_port, running, wait_until_ready
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.process.child import environment
from prunekit.utils.progress import aside

START_SECONDS = 600.0
_BOUNDS = {"threads": (1, 4096), "slots": (1, 4096), "context": (16, 1 << 24)}
# Others may take a free port before the server does.
_TRIES = 3


@dataclass(frozen=True)
class Identity:
    """What answers: the server's name and version, its command without paths of this machine (``PORT`` stands for the
    free one), the model's name and the hash of its weights, and how many requests it answers at once (None: it does not
    say)."""

    server: str
    version: str | None
    argv: tuple[str, ...]
    model: str
    model_sha256: str
    context: int
    threads: int | None
    slots: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "argv": [*self.argv]}


@dataclass(frozen=True)
class Server:
    """A server that is ready. ``url`` ends in no slash and has no ``/v1``; ``model`` is its name in requests; ``log``
    holds what it wrote."""

    url: str
    model: str
    identity: Identity
    pid: int
    log: Path


@contextmanager
def served(
    path: str | Path,
    *,
    kind: str = "auto",
    port: int = 0,
    threads: int | None = None,
    context: int = 2048,
    slots: int | None = None,
    device: str = "auto",
    log: str | Path | None = None,
    limit: float = START_SECONDS,
) -> Iterator[Server]:
    """Serve the model ``path`` with OpenAI's API on 127.0.0.1 while the block runs.

    ``kind`` is ``llama.cpp`` (llama-server where PATH has it, else llama-cpp-python's), ``transformers``, ``vllm`` or
    ``auto`` (:func:`~prunekit.profiling.loopback.models.opened`). ``port`` 0 takes a free one. ``threads`` of None
    leaves them to the server; ``context`` is in tokens, of one request (transformers has no such limit); ``slots`` are
    requests at once (None: four in llama-server, one in llama-cpp-python's, else the server's own choice), ``log`` a
    file that the server's words are added to. ``limit`` is in seconds.

    No code of the model is run and no other machine is asked. The server is ended with the block, by Ctrl-C too.
    Raises PrunekitError where the model can't be served, the server is not installed, ends before it is ready (with its
    last lines) or takes too long.
    """
    if port:
        check_port(port)
    _check(threads=threads, slots=slots, context=context)
    model = opened(str(path), kind)
    check_installed(model.kind)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder("server"))
        written = folder / "server.log" if log is None else Path(log).expanduser()
        if model.path.is_dir():
            # Requests name a folder as the command does: by a link, so that no path of this machine is in them.
            (folder / model.label).symlink_to(model.path, target_is_directory=True)
        for left in reversed(range(1 if port else _TRIES)):
            wanted = Wanted(port or free_port(), context, threads, slots, device)
            command = command_of(model, wanted, folder)
            try:
                process = stack.enter_context(_ready(command, wanted.port, written, limit))
                break
            except PortTaken:
                if not left:
                    raise
        identity = _identity(model, command, wanted)
        yield Server(f"http://{HOST}:{wanted.port}", model.label, identity, process.pid, written)


@contextmanager
def _ready(command: Command, port: int, log: Path, limit: float) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, once it answers."""
    variables = server_environment({**environment(), **command.variables})
    with running(command.argv, variables, log) as process:
        with aside(f"starting {command.server}"):
            wait_until_ready(process, port, command.ready, log, limit, command.server)
        yield process


def _identity(model: Opened, command: Command, wanted: Wanted) -> Identity:
    return Identity(
        command.server,
        command.version,
        command.shown,
        model.label,
        model.digest(),
        wanted.context,
        wanted.threads,
        command.slots,
    )


def _check(**counts: int | None) -> None:
    for name, value in counts.items():
        least, most = _BOUNDS[name]
        if value is not None and not least <= value <= most:
            raise PrunekitError(f"A server's {name} must be from {least:,} to {most:,}, got {value!r}.")
