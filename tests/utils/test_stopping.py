"""Signals that end a run: it ends, cleans up, and says what is true."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunekit.cli import common
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.process import stopping
from prunekit.utils.process.stopping import Stopped, undisturbed
from tests.support.command import listing

WENT_ON = "went on as if nothing had happened"


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def run_command(command: Callable[[], object], prepare: Callable[[], None] = lambda: None) -> tuple[int, str, str]:
    """``command`` as prunekit's, in a copy of this process. Returns its exit code, stdout and stderr."""
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        for number, (_, writing) in enumerate(pipes, 1):
            os.dup2(writing, number)
            os.close(writing)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = 1
        try:
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
            prepare()
            common.app = lambda *args, **options: command()  # type: ignore[assignment]
            common.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
    said = []
    for reading, writing in pipes:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said.append(pipe.read())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said[0], said[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_half_written_goes(number: int, tmp_path: Path) -> None:
    def command() -> None:
        with new_folder(tmp_path / "deep" / "out") as folder, temporary_folder("beside", tmp_path):
            (folder / "half").touch()
            send(number)
            print(WENT_ON)

    assert run_command(command) == (128 + number, "", "prunekit: stopped; nothing half-written was left behind.\n")
    assert listing(tmp_path) == {}


class _Destructor:
    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        send(self.number)
        [0 for _ in range(1000)]


def _in_destructor(number: int) -> None:
    _Destructor(number)


def _in_collection(number: int) -> None:
    loop = _Destructor(number)
    loop.loop = loop  # type: ignore[attr-defined]
    del loop
    gc.collect()


def _in_weakref(number: int) -> None:
    class Thing:
        pass

    thing = Thing()
    kept = weakref.ref(thing, lambda _: send(number))
    del thing
    assert kept() is None


def _in_callback(number: int) -> None:
    import ctypes

    ctypes.CFUNCTYPE(None)(lambda: send(number))()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", [_in_destructor, _in_collection, _in_weakref, _in_callback])
def test_where_python_drops_exceptions(where: Callable[[int], None], number: int, tmp_path: Path) -> None:
    def command() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            where(number)
            print(WENT_ON)

    assert run_command(command) == (128 + number, "", "prunekit: stopped; nothing half-written was left behind.\n")
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_a_module_is_imported(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at once: an exception would abort libraries in C++ that are just being initialised."""
    (tmp_path / "slow_to_import.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {number:d})\nexcept BaseException:\n    os.abort()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def command() -> None:
        with new_folder(tmp_path / "deep" / "er" / "out") as folder:
            (folder / "half").touch()
            importlib.import_module("slow_to_import")

    assert run_command(command) == (128 + number, "", "prunekit: stopped; nothing half-written was left behind.\n")
    assert not (tmp_path / "deep").exists()


def test_before_the_command_is_imported() -> None:
    # Where tests run in the background, their children are born deaf to it.
    code = (
        "import os, sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv[0] = 'prunekit'; import prunekit; os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "prunekit: stopped; nothing half-written was left behind.\n")


def test_a_second_signal_after_the_first_was_told(tmp_path: Path) -> None:
    """While Python ends, which takes its time after torch was used."""

    def command() -> None:
        real = common.stoppable

        @contextmanager
        def then_another(at_once: Callable[[int], None]) -> Iterator[None]:
            with real(at_once):
                yield
            send(signal.SIGTERM)

        common.stoppable = then_another  # type: ignore[assignment]
        common.app = lambda *args, **options: send(signal.SIGINT)  # type: ignore[assignment]
        common.main()

    code, _, err = run_command(command)
    assert code == 130 and err == "prunekit: stopped; nothing half-written was left behind.\n"


def test_a_library_that_drops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told again, and ended where that does not help."""
    monkeypatch.setattr(stopping, "_PATIENCE", 0.05)

    def command() -> None:
        send(signal.SIGTERM)
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass

    def stubborn() -> None:
        try:
            command()
        except BaseException:
            command()

    assert run_command(stubborn)[::2] == (143, "prunekit: stopped; nothing half-written was left behind.\n")


def test_clean_up_is_not_cut_short(tmp_path: Path) -> None:
    def command() -> None:
        try:
            with new_folder(tmp_path / "out") as folder:
                (folder / "half").touch()
                send(signal.SIGINT)
        finally:
            # While it ends: another one.
            send(signal.SIGTERM)
            with undisturbed():
                send(signal.SIGINT)
                (tmp_path / "cleaned").touch()

    assert run_command(command)[::2] == (130, "prunekit: stopped; nothing half-written was left behind.\n")
    assert [*listing(tmp_path)] == ["cleaned"]


def test_a_signal_waits_for_what_must_be_whole(tmp_path: Path) -> None:
    def command() -> None:
        try:
            with undisturbed():
                send(signal.SIGHUP)
                (tmp_path / "whole").touch()
            print(WENT_ON)
        except Stopped as stop:
            assert stop.number == signal.SIGHUP
            raise

    assert run_command(command)[:2] == (129, "")
    assert [*listing(tmp_path)] == ["whole"]


def test_another_thread_keeps_nobody_from_stopping(tmp_path: Path) -> None:
    """A thread that writes files while Ctrl-C comes: the run ends by it, and not when the thread is done."""

    def command() -> None:
        inside = threading.Event()

        def work() -> None:
            with undisturbed():
                inside.set()
                time.sleep(60)

        threading.Thread(target=work, daemon=True).start()
        inside.wait()
        send(signal.SIGINT)
        (tmp_path / "after").touch()

    began = time.monotonic()
    code, _, err = run_command(command)
    assert code == 128 + signal.SIGINT and "stopped" in err and not (tmp_path / "after").exists()
    assert time.monotonic() - began < 30


def test_what_was_ignored_stays_ignored() -> None:
    """As nohup has it, and shells for jobs in the background."""

    def command() -> int:
        send(signal.SIGHUP)
        send(signal.SIGINT)
        print("still here")
        return 0

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    assert run_command(command, prepare) == (0, "still here\n", "")


def test_what_can_not_be_removed_is_named(tmp_path: Path) -> None:
    def command() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").touch()
            os.rmdir = os.unlink = lambda *args, **options: (_ for _ in ()).throw(OSError(30, "Read-only"))  # type: ignore[assignment]
            send(signal.SIGTERM)

    code, _, err = run_command(command)
    assert code == 143 and "could not be removed" in err and ".out.prunekit-new-" in err


def test_nobody_reads_the_output() -> None:
    def command() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        print("x" * 100)

    assert run_command(command)[::2] == (1, "")


def test_the_output_goes_to_a_full_disk() -> None:
    def command() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        print("x")

    code, _, err = run_command(command)
    assert code == 2 and "No space left on device" in err and "Traceback" not in err
