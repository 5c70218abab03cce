"""Python in a child process that takes no code from the working folder, within limits, and never outlives its parent.

    ended = run_python(module="prunekit.cli.memory_probe", arguments=[json.dumps(what)])
    ended = run_python(
        module="prunekit.data.chat_child",
        input=json.dumps(work),
        timeout=10,
        limits=Limits(memory_bytes=2**30, cpu_seconds=5, output_bytes=2**20, file_bytes=0),
    )
    if not ended.ok:
        raise PrunekitError(f"The work failed ({ended.reason}); do this instead.")
    answer = json.loads(ended.out)

The folder in which a user works may be a stranger's: ``-m``, ``-c`` and an empty entry of PYTHONPATH would let Python
find ``json.py`` or ``prunekit/`` there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

from prunekit.utils.process.telemetry import OFF

# Seconds that a child has to clean up after SIGTERM.
_GRACE = 5.0
_PIECE = 1 << 16
# Where a checkout keeps packages of ours that an installation has below prunekit/.
_PACKAGES = ("prunekit", "prunekit.export", "prunekit.kernels")

# What a child does first. Nothing may be imported before the working folder is off the path, which ``-c`` puts there
# on Python 3.10 (PYTHONSAFEPATH came with 3.11); sys is built in.
_BEGIN = """
import sys
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
import json
told = json.loads(sys.argv[1])
sys.path[:] = [entry for entry in told["path"] if entry not in told["without"] or entry in sys.path]
if sys.platform == "linux":
    import ctypes, os
    ctypes.CDLL(None).prctl(1, 9)
    # It may have ended before that was said.
    os.kill(told["parent"], 0)
try:
    import resource
except ImportError:
    resource = None
for name, most in told["limits"].items() if resource else ():
    hard = resource.getrlimit(getattr(resource, name))[1]
    # The signal that names the reason comes at the soft limit of RLIMIT_CPU, SIGKILL at the hard one.
    bounds = [most, most + (name == "RLIMIT_CPU")]
    resource.setrlimit(
        getattr(resource, name), [n if hard == resource.RLIM_INFINITY else min(n, hard) for n in bounds]
    )
from importlib.util import spec_from_file_location
class Ours:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = told["packages"].get(name)
        if folder is None:
            return None
        return spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.meta_path.insert(0, Ours)
sys.argv[:] = ["prunekit", *sys.argv[2:]]
if told["module"]:
    import runpy
    # The package reads it to know a command's process, in which models are registered only when one is loaded.
    runpy.run_module(told["module"], run_name="__main__", alter_sys=False)
else:
    exec(compile(told["code"], "<child>", "exec"), {"__name__": "__main__"})
"""

Stopped = Literal["timeout", "output", "cpu"]


@dataclass(frozen=True)
class Limits:
    """What a child may take; None is no limit.

    ``memory_bytes`` bounds its address space (torch alone reserves several GiB of it), ``data_bytes`` what it may
    write to there (no files and libraries), ``cpu_seconds`` the time it computes, ``file_bytes`` each file that it
    writes (0: none); all four on POSIX systems only. ``output_bytes`` bounds stdout and stderr, each.
    """

    memory_bytes: int | None = None
    data_bytes: int | None = None
    cpu_seconds: int | None = None
    output_bytes: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended. ``code`` is negative for the signal that ended it; ``stopped`` says which limit did."""

    code: int
    out: str
    err: str
    stopped: Stopped | None = None

    @property
    def ok(self) -> bool:
        return self.code == 0 and self.stopped is None

    @property
    def reason(self) -> str:
        """Why it failed, in a few words: the limit, the signal, or the last line it wrote on stderr."""
        if self.stopped is not None:
            return {
                "timeout": "it took too long",
                "output": "it wrote too much",
                "cpu": "it computed for too long",
            }[self.stopped]
        if self.code < 0:
            return f"killed by signal {-self.code}"
        return (self.err.strip() or "no message").splitlines()[-1]


def run_python(
    *,
    module: str | None = None,
    code: str | None = None,
    arguments: Sequence[str] = (),
    input: str | None = None,
    timeout: float | None = None,
    limits: Limits | None = None,
    variables: Mapping[str, str] | None = None,
) -> Ended:
    """Run ``module`` (as ``python -m`` does) or ``code`` in a new interpreter, with ``arguments`` in sys.argv[1:] and
    ``input`` on stdin (None: an empty one). It imports what this process would import, prunekit from the same files.

    ``timeout`` is in seconds. ``variables`` are added to the environment. The child and all that it starts end when
    this call ends in whatever way: an exception, Ctrl-C, a signal that raises; on Linux the child also ends when this
    process is killed. Raises OSError where no process can be started.
    """
    limits = limits or Limits()
    process = subprocess.Popen(
        python_command(module=module, code=code, arguments=arguments, limits=limits),
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), **(variables or {})},
        # A group of its own, so that what the child starts can be ended with it.
        start_new_session=os.name == "posix",
    )
    # An unexpected end asks the child to clean up; a limit that was passed does not.
    stopped: list[Stopped] = []
    try:
        readers = [_Reader(pipe, limits.output_bytes, process, stopped) for pipe in (process.stdout, process.stderr)]
        if input is not None:
            threading.Thread(target=_feed, args=(process.stdin, input.encode()), daemon=True).start()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            stopped.append("timeout")
            kill(process)
        # What the child started may still hold the pipes.
        _end_group(process)
        out, err = (reader.text() for reader in readers)
    except BaseException:
        end(process)
        raise
    if process.returncode == -getattr(signal, "SIGXCPU", 0) and not stopped:
        stopped.append("cpu")
    return Ended(process.returncode, out, err, stopped[0] if stopped else None)


def python_command(
    *, module: str | None = None, code: str | None = None, arguments: Sequence[str] = (), limits: Limits | None = None
) -> list[str]:
    """The command line that :func:`run_python` starts, for :func:`environment`; a direct child of this process only."""
    if (module is None) == (code is None):
        raise ValueError("Name a module or give code.")
    limits = limits or Limits()
    bounds = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_DATA": limits.data_bytes,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": limits.file_bytes,
        # What is killed for a limit must not fill the disk.
        "RLIMIT_CORE": None if limits == Limits() else 0,
    }
    told = {
        "module": module,
        "code": code,
        # Names that are no path at all stand for the finders of editable installs.
        "path": [entry for entry in sys.path if os.path.isabs(entry) or (entry and not os.path.lexists(entry))],
        "without": _working_folder(),
        "packages": {name: folder for name in _PACKAGES if (folder := _folder(name)) is not None},
        "parent": os.getpid(),
        "limits": {name: most for name, most in bounds.items() if most is not None},
    }
    return [sys.executable, "-c", _BEGIN, json.dumps(told), *arguments]


def environment() -> dict[str, str]:
    """The environment for a child: as this process's, but nothing in it leads to the working folder.

    Entries of PATH and PYTHONPATH that are empty or relative are left out, and Python 3.11 and later are told not to
    put the working folder on the path of ``-m`` and ``-c``, whoever starts them. Libraries report to nobody.
    """
    made = dict(os.environ)
    made.update(_SAFE)
    for name in ("PATH", "PYTHONPATH"):
        if name in made:
            made[name] = os.pathsep.join(_absolute(made[name].split(os.pathsep)))
            if not made[name]:
                del made[name]
    return made


def find_program(name: str) -> str | None:
    """The full path of a program in PATH, but never one in the working folder; None where there is none."""
    return shutil.which(name, path=environment().get("PATH", ""))


# The second is for Windows, where programs of the working folder come first.
_SAFE = {"PYTHONSAFEPATH": "1", "NoDefaultCurrentDirectoryInExePath": "1", **OFF}


@contextmanager
def safe_children() -> Iterator[None]:
    """While the block runs, this process has :func:`environment`, and with it whatever libraries start (compilers,
    workers)."""
    before = {name: os.environ.get(name) for name in (*_SAFE, "PATH", "PYTHONPATH")}
    made = environment()
    flags = getattr(subprocess, "_args_from_interpreter_flags", None)
    try:
        _put(made, before)
        if sys.version_info < (3, 11) and flags is not None:
            # Workers of multiprocessing get this process's sys.path afterwards.
            subprocess._args_from_interpreter_flags = lambda: ["-I", *flags()]  # type: ignore[attr-defined]
        yield
    finally:
        _put(before, before)
        if flags is not None:
            subprocess._args_from_interpreter_flags = flags  # type: ignore[attr-defined]


def _put(values: Mapping[str, str | None], names: Mapping[str, Any]) -> None:
    for name in names:
        value = values.get(name)
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def kill(process: subprocess.Popen[Any]) -> None:
    """End a child that :func:`run_python` or a caller started with ``start_new_session``, and all it started, now."""
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    with suppress(OSError):
        process.kill()
    process.wait()


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a child to end and clean up, and :func:`kill` it where it doesn't within seconds, or this is interrupted."""
    try:
        if process.poll() is None:
            with suppress(OSError):
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
    finally:
        kill(process)


def _end_group(process: subprocess.Popen[Any]) -> None:
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))


def _signal_group(process: subprocess.Popen[Any], number: int) -> None:
    # A group outlives its first process while others are in it, so its number is not another's yet.
    if os.name == "posix":
        with suppress(OSError):
            os.killpg(process.pid, number)


class _Reader(threading.Thread):
    """Reads a pipe to its end, keeps at most ``most`` bytes, and ends the child where there are more."""

    def __init__(self, pipe: IO[bytes] | None, most: int | None, process: Any, stopped: list[Stopped]):
        super().__init__(daemon=True)
        assert pipe is not None
        self._pipe, self._most, self._process, self._stopped = pipe, most, process, stopped
        self._pieces: list[bytes] = []
        self.start()

    def run(self) -> None:
        held = 0
        with self._pipe:
            while piece := os.read(self._pipe.fileno(), _PIECE):
                held += len(piece)
                if self._most is not None and held > self._most:
                    self._stopped.append("output")
                    _signal_group(self._process, getattr(signal, "SIGKILL", signal.SIGTERM))
                    with suppress(OSError):
                        self._process.kill()
                    return
                self._pieces.append(piece)

    def text(self) -> str:
        self.join()
        return b"".join(self._pieces).decode(errors="replace")


def _feed(pipe: Any, data: bytes) -> None:
    # A child need not read all of it.
    with suppress(OSError), pipe:
        pipe.write(data)


def _absolute(entries: Sequence[str]) -> list[str]:
    return [entry for entry in entries if os.path.isabs(entry)]


def _working_folder() -> list[str]:
    with suppress(OSError):
        return sorted({os.getcwd(), os.environ.get("PWD") or os.getcwd()})
    return []


def _folder(name: str) -> str | None:
    """Where this process has, or would find, a package of ours."""
    loaded = sys.modules.get(name)
    spec: ModuleSpec | None = None
    if loaded is None:
        with suppress(ImportError):
            spec = find_spec(name)
    places = getattr(loaded, "__path__", None) or (spec.submodule_search_locations if spec else None)
    found = next((place for place in places or () if (Path(place) / "__init__.py").is_file()), None)
    return None if found is None else str(Path(found).resolve())
