"""What shells offer after a tab."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.command import ROOT


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("prunekit pl", {"plan"}),
        ("prunekit prune x --me", {"--method"}),
        ("prunekit plan x --method f", {"flap", "fisher-global"}),
        ("prunekit analyze x --set seq", {"sequences="}),
        ("prunekit export x --to onnx", {"onnx", "onnx-genai"}),
        ("prunekit bench x --runtime to", {"torch", "torchscript", "torch-export"}),
    ],
)
def test_bash(words: str, offered: set[str]) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_PRUNEKIT_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv[0] = 'prunekit'; from prunekit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **asked},
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == "" and set(done.stdout.split()) == offered, done
