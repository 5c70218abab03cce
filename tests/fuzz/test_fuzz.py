"""A part of what ``make fuzz`` does for hours: spoiled inputs of every kind, as many as the time allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.command import ROOT

# Each kind once, the same inputs in every run; other ones with FUZZ_SEED=7 FUZZ_SECONDS=180 (at most 180).
INPUTS, SEED = 25, 11


def test_spoiled_inputs(tmp_path: Path) -> None:
    """In a process of its own: it forks, which what other tests have started might not survive."""
    seconds = os.environ.get("FUZZ_SECONDS")
    bound = ("--inputs", INPUTS) if seconds is None else ("--minutes", min(float(seconds), 180.0) / 60)
    told = (*bound, "--seed", os.environ.get("FUZZ_SEED", SEED), "--keep", tmp_path / "failures")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/fuzz/fuzz_run.py", *map(str, told)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
