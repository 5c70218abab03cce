"""benchmarks/cli/interrupted.py: how far a log says a command is, and stops that are gone on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cli import interrupted
from tests.support.command import QUICK, save_tiny, write_text

LOG = """\
2026-12-01 00:50:40 prunekit prune smollm2-135m --blocks 0.6 --log run.log -o b60
2026-12-01 00:50:46 This takes about 49 minutes, 4.5 GB of memory and 448 MB of disk (a prediction).
2026-12-01 00:50:47 [1/11] reading text: 0.6 s
2026-12-01 00:51:48 [2/11] own text 35/176, about 4 min left of this phase, 52 min in all, 2.0 GB
2026-12-01 00:57:09 [2/11] own text 88/176, about 3 min left of this phase, 2.3 GB
2026-12-01 00:57:09 [3/11] Fisher information begins
2026-12-01 00:57:19 [4/11] loss curves, round 2: kept from an earlier run
2026-12-01 00:57:20 [5/11] rescaling 23/48 (KL 0.4933), about 4 min left, 4.0 GB
"""


def test_how_far_a_log_says_it_is(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(LOG)
    found = interrupted.reached(tmp_path / "run.log")
    assert found["reading text"] == 1.0 and found["own text"] == 0.5 and found["Fisher information"] == 0.0
    assert found["rescaling"] == pytest.approx(23 / 48)
    assert interrupted.stands(found, "own text", 0.5) and not interrupted.stands(found, "own text", 0.6)
    assert not interrupted.stands(found, "refit", 0.0) and interrupted.reached(tmp_path / "none") == {}


def test_a_command_is_run_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = save_tiny(tmp_path / "model"), write_text(tmp_path / "text.txt")
    told = ["prune", str(model), "-o", str(tmp_path / "out"), "--blocks", "0.7", "--calib", str(text), *map(str, QUICK)]
    (tmp_path / "work").mkdir()
    row = interrupted.run([*told, "--method", "adapt-pruner", "--check", "none"], tmp_path / "work", None, None)
    assert row["stopped_in"] is None and row["seconds"] > 0 and (tmp_path / "out" / "plan.json").is_file()
    report = {"runs": [{"stopped_in": "refit", "done": 0.5, "seconds": 20.0, "back_after": None}, row]}
    assert "| refit | 50% | 20 | – |" in interrupted.table(report)
    json.dumps(row)
