"""What an export's README prints, run as printed in the export's folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Programs that install something, wait for ever, or call a server that does.
_NOT_HERE = ("pip", "npm", "llama-server", "vllm", "curl")


def blocks(folder: Path) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    return [(found[1], found[2]) for found in re.finditer(r"```(\w+)\n(.*?)```", readme, re.S)]


def run_blocks(folder: Path, *, apart: bool = False) -> Iterator[tuple[str, str]]:
    """Run what can be run here, and give the first line of each with what it printed, or "skipped: PROGRAM". Python
    runs in this process, or with ``apart`` in one of its own, as a stranger's would. Raises AssertionError where one
    fails or asks something."""
    for language, text in blocks(folder):
        if language == "python":
            yield text.splitlines()[0], _python(text, folder, apart)
        elif language == "sh":
            for command in re.sub(r"\\\n", " ", text).splitlines():
                words = shlex.split(command, comments=True)
                if words:
                    yield command, _command(command, words, folder)
        else:
            yield text.splitlines()[0], f"skipped: {language}"


def _python(text: str, folder: Path, apart: bool) -> str:
    if apart:
        return _run([sys.executable, "-c", text], folder)
    before, printed = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            exec(text, {"__name__": "__main__"})
    finally:
        os.chdir(before)
    return printed.getvalue()


def _command(command: str, words: list[str], folder: Path) -> str:
    program = next(word for word in words if "=" not in word)
    if program in _NOT_HERE or shutil.which(program) is None or "build-engine.sh" in words:
        return f"skipped: {program}"
    if program == "python" and "openvino_genai" in command:
        return "skipped: openvino_genai"
    return _run(["sh", "-c", command], folder)


def _run(arguments: list[str], folder: Path) -> str:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        arguments, cwd=folder, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "[y/N]" not in said, said
    return done.stdout
