"""benchmarks/quality/quality.py on a tiny model: what it runs, what it keeps, what it draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import quality
from tests.support.command import Command, make_command, save_tiny, write_text


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``run("--seeds", "2")`` compares two methods in this process. Returns the report, and what prunekit was told."""
    command: Command = make_command(monkeypatch, capsys)
    told: list[tuple[str, ...]] = []

    def prunekit(arguments: Any) -> tuple[Any, int]:
        told.append(tuple(arguments))
        ended = command(*arguments, "--json")
        if ended.code:
            raise quality.subprocess.CalledProcessError(ended.code, "prunekit", stderr=ended.err)
        return ended.json, 2**20

    monkeypatch.setattr(quality, "_prunekit", prunekit)
    model = save_tiny(tmp_path / "model", max_position_embeddings=512)
    calib, text = write_text(tmp_path / "calib.txt"), write_text(tmp_path / "held_out.txt", 3000)
    output = tmp_path / "quality.json"

    def go(*more: str) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
        told.clear()
        given = [str(model), "--calib", str(calib), "--text", str(text), "--output", str(output)]
        given += ["--sequences", "4", "--length", "16", "--max-tokens", "1024", "--blocks", "0.8"]
        monkeypatch.setattr(sys, "argv", ["quality.py", *given, "--only", "magnitude", "--only", "flap", *more])
        quality.main()
        return json.loads(output.read_text()), list(told)

    return go


def test_every_method_is_pruned_and_judged_once(run: Any, tmp_path: Path) -> None:
    report, told = run("--blocks", "0.6")
    assert [(each["method"], each["blocks"]) for each in report["runs"]] == [
        (method, share) for share in (0.8, 0.6) for method in ("magnitude", "flap")
    ]
    assert [each[0] for each in told] == ["prune", "eval"] * 4
    for each in report["runs"]:
        assert each["share_of_blocks"] <= each["blocks"] and each["texts"][0]["kl"] > 0 and each["seconds"] > 0
    written = (tmp_path / "quality.md").read_text()
    assert "80% of the blocks" in written and written.count("| flap |") == 2
    assert (tmp_path / "quality.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(run: Any) -> None:
    first, _ = run()
    second, told = run("--seeds", "2")
    assert second["runs"][:2] == first["runs"] and len(second["runs"]) == 4
    assert all("seed=1" in each for each in told if each[0] == "prune")
    third, told = run("--seed", "7", "--seed", "1")
    assert [each["seed"] for each in third["runs"][4:]] == [7, 7]
    assert all("seed=7" in each for each in told if each[0] == "prune")
    with pytest.raises(SystemExit, match="other settings"):
        run("--dtype", "bfloat16")


def test_a_method_that_fails_is_told_and_the_rest_goes_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quality.METHODS, "magnitude", "--method nonsense")
    report, _ = run()
    failed, good = report["runs"]
    assert "error" in failed and "error" not in good
    assert "failed" in quality.table(report)
