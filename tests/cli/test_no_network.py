"""Commands on local models open no connection, and tell nobody of their use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.utils.process.child import environment
from prunekit.utils.process.telemetry import OFF
from tests.support.command import QUICK, ROOT, save_tiny, write_text

# Python reads it in every process, ours and those that libraries start, before anything else.
_WATCH = """
import os, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments} by {sys.argv}\\n")

sys.addaudithook(watch)
"""
_RUN = """
import json, sys
from prunekit.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["prunekit", *arguments]
    try:
        main()
    except SystemExit as stop:
        sys.exit(f"{arguments}: {stop.code}")
"""
_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "CI", *OFF)


def watched(folder: Path, code: str, *arguments: str) -> list[str]:
    """Connections and look-ups of a process that runs ``code``, and of its children, with no variable against them."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(_WATCH)
    known = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    known |= {"PYTHONPATH": os.pathsep.join([str(folder / "watch"), str(ROOT)]), "SEEN": str(folder / "seen")}
    known |= {"HOME": str(folder), "PRUNEKIT_CACHE": str(folder / "cache")}
    (folder / "seen").touch()
    script = folder / "prunekit"
    script.write_text(code)
    done = subprocess.run([sys.executable, script, *arguments], env=known, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "seen").read_text().splitlines()


def test_the_watch_sees_children_and_threads(tmp_path):
    code = "from prunekit.utils.process.child import run_python\nimport socket\n"
    code += "run_python(code=\"import socket; socket.getaddrinfo('127.0.0.1', 80)\")\n"
    code += "with socket.socket() as made:\n    made.connect_ex(('127.0.0.1', 9))\n"
    seen = watched(tmp_path, code)
    assert [line.split()[0] for line in seen] == ["socket.getaddrinfo", "socket.connect"]


def test_commands_on_local_models_open_no_connection(tmp_path):
    save_tiny(tmp_path / "model", "llama", layers=2)
    text = write_text(tmp_path / "text.txt")
    lines = [json.dumps({"text": line}) for line in text.read_text().split("\n\n")]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    small = (
        "--prompt-tokens",
        "4",
        "--new-tokens",
        "2",
        "--max-minutes",
        "0",
        "--repeats",
        "2",
        "--warmup",
        "0",
        "--device",
        "cpu",
        "--no-memory",
    )
    commands = [
        ("prune", "model", "--blocks", "0.8", "--method", "adapt-pruner", *QUICK, "--calib", "text.jsonl", "-o", "out"),
        ("inspect", "out"),
        ("eval", "out", "--baseline", "model", "--text", "text.txt", "--length", "16", "--device", "cpu"),
        ("generate", "out", "--prompt", "The quick", "--max-new-tokens", "2", "--device", "cpu"),
        ("export", "out", "--to", "hf", "-o", "exported", "--no-verify"),
        ("bench", "out", "--baseline", "model", *small),
    ]
    assert watched(tmp_path, _RUN, json.dumps(commands)) == []


def test_openvino_tells_nobody_that_it_was_imported(tmp_path):
    pytest.importorskip("openvino_telemetry")
    code = "import sys\nfrom prunekit.utils.process.telemetry import openvino_silent\n"
    code += "with openvino_silent():\n    import openvino\n"
    code += "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    assert watched(tmp_path, code) == []
    assert not (tmp_path / "intel").exists()


def test_children_and_libraries_are_told_to_report_nothing(monkeypatch):
    for name in OFF:
        monkeypatch.delenv(name, raising=False)
    assert {name: environment()[name] for name in OFF} == OFF
