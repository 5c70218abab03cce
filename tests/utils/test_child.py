"""Child processes: no code of the working folder, limits, and an end together with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prunekit.utils.process.child import Limits, environment, find_program, run_python, safe_children
from tests.support.command import ROOT

NAMES = ("psutil", "json", "torch", "sitecustomize", "usercustomize", "ctypes", "resource", "importlib")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds modules that leave a file ``ran-NAME`` when they are imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in (*NAMES, "_pickle", "pkgutil", "runpy"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / ('ran-' + name))!r}, 'w').close()\n")
    for name in ("prunekit", "numpy", "transformers"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"open({str(tmp_path / ('ran-' + name))!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    return folder


def ran(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.parent.glob("ran-*"))


@pytest.mark.parametrize("path", ["", ".", f"{os.pathsep}.{os.pathsep}", "../hostile"])
def test_a_child_finds_no_code_in_the_working_folder(hostile, monkeypatch, path):
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend("")
    code = (
        "import json, sys, psutil, numpy, prunekit.utils.process.child\n"
        "print(json.dumps([prunekit.__file__, *sys.argv[1:]]))"
    )
    ended = run_python(code=code, arguments=["--one", "two"])
    assert ended.ok, ended.err
    assert json.loads(ended.out) == [str(ROOT / "prunekit" / "__init__.py"), "--one", "two"]
    assert ran(hostile) == []


def test_a_module_runs_as_a_command_and_grandchildren_are_safe_too(hostile):
    ended = run_python(module="prunekit", arguments=["--help"])
    assert ended.ok and "prune" in ended.out
    code = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import psutil']).returncode)"
    ended = run_python(code=code)
    if sys.version_info >= (3, 11):
        assert ended.out.strip() == "0"
    assert ran(hostile) == []


def test_workers_of_libraries_are_safe_inside_the_command(hostile, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PATH", os.pathsep.join([".", "", os.environ["PATH"]]))
    with safe_children():
        code = "import psutil, multiprocessing.spawn"
        made = environment()
        if sys.version_info >= (3, 11):
            subprocess.run([sys.executable, "-c", code], check=True)
        assert all(os.path.isabs(entry) for entry in os.environ["PATH"].split(os.pathsep))
    assert os.environ["PATH"].startswith(".") and "PYTHONSAFEPATH" in made
    assert ran(hostile) == []


def test_python_m_prunekit_leaves_a_foreign_folder(tmp_path):
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran-json')!r}, 'w').close()\n")
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'ran-torch')!r}, 'w').close()\n")
    command = [sys.executable, "-m", "prunekit", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("ran-*"))


@pytest.mark.parametrize(
    ("code", "limits", "timeout", "reason"),
    [
        ("while True: print('x' * 10000)", Limits(output_bytes=100_000), None, "it wrote too much"),
        ("while True: pass", Limits(cpu_seconds=1), None, "it computed for too long"),
        ("import time; time.sleep(60)", None, 0.3, "it took too long"),
        ("x = 'a' * 10**10", Limits(memory_bytes=2**30), None, "MemoryError"),
        ("f = open('big', 'wb'); f.write(b'x'); f.flush()", Limits(file_bytes=0), None, "File too large"),
        ("import os; os.kill(os.getpid(), 9)", None, None, "killed by signal 9"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_limits_end_a_child_and_name_the_reason(tmp_path, monkeypatch, code, limits, timeout, reason):
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    ended = run_python(code=code, limits=limits, timeout=timeout)
    assert not ended.ok and reason in ended.reason
    assert time.monotonic() - begin < 10


def test_what_is_given_on_stdin_arrives_and_a_child_need_not_read_it():
    text = "é" * 2**20
    assert run_python(code="import sys; print(len(sys.stdin.read()))", input=text).out.strip() == str(2**20)
    assert run_python(code="pass", input=text).ok


# Prints the ids of a child and of a grandchild, and waits.
_NEST = '''
import signal, sys
sys.argv[0] = "prunekit"  # as a command, which imports no torch before it must
from prunekit.utils.process.child import run_python
inner = """
import os, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {other.pid}")
os.rename(file.name, sys.argv[1])
time.sleep(60)
"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
signal.signal(signal.SIGINT, signal.default_int_handler)
run_python(code=inner, arguments=sys.argv[1:])
'''


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGKILL"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child whose parent was killed")
def test_children_end_with_their_parent(tmp_path, number):
    ids = tmp_path / "ids"
    process = subprocess.Popen(
        [sys.executable, "-c", _NEST, str(ids)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not ids.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child, grandchild = map(int, ids.read_text().split())
    process.send_signal(getattr(signal, number))
    process.wait(20)
    # Nobody is left to end a grandchild after SIGKILL.
    for each in (child,) if number == "SIGKILL" else (child, grandchild):
        while psutil.pid_exists(each) and psutil.Process(each).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    if number == "SIGKILL":
        os.kill(grandchild, signal.SIGKILL)


def test_programs_are_never_taken_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\ntouch ran\n")
    program.chmod(0o755)
    (tmp_path / "sub").mkdir()
    for path in (".", "", "sub/.."):
        monkeypatch.setenv("PATH", path)
        assert find_program("nvidia-smi") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("nvidia-smi") == str(program)


def test_pictures_take_no_settings_of_the_working_folder(tmp_path, monkeypatch):
    import matplotlib

    from prunekit.report.pictures import draw_importance

    draw_importance([1.0, 2.0], "magnitude", tmp_path / "plain.svg")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30}):
        draw_importance([1.0, 2.0], "magnitude", tmp_path / "styled.svg")
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()
