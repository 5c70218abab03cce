"""A part of what ``make fuzz`` does for hours: spoiled inputs of every kind, as many as the time allows."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from command import ROOT

# A wall clock's seconds, at most 180: FUZZ_SECONDS=180 make test.
SECONDS = min(float(os.environ.get("FUZZ_SECONDS", "30")), 180.0)


def test_spoiled_inputs(tmp_path: Path) -> None:
    """In a process of its own: it forks, which what other tests have started might not survive."""
    seed = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(1 << 31)))
    given = ("--minutes", str(SECONDS / 60), "--seed", str(seed), "--keep", tmp_path / "failures")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/fuzz/fuzz_run.py", *given],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
