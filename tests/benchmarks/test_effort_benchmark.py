"""benchmarks/quality/effort.py on a tiny model: what it runs, what it keeps, what it takes over, what it draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.spent import Spent
from benchmarks.quality import effort
from benchmarks.quality.measured_command import measured
from tests.support.command import Command, make_command, save_tiny, write_text

SMALL = "--set sequences=4 --set length=16"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``run("--repeats", "2")`` measures two variants in this process. Returns the report, and what prunekit was
    told."""
    command: Command = make_command(monkeypatch, capsys)
    told: list[tuple[str, ...]] = []

    def in_this_process(arguments: Any, more: Any = None) -> tuple[Any, Spent]:
        told.append(tuple(map(str, arguments)))
        ended = command(*arguments, "--json")
        if ended.code:
            raise effort.subprocess.CalledProcessError(ended.code, "prunekit", stderr=ended.err)
        return ended.json, Spent(2.0, 3.5, 2**30, 1.5)

    monkeypatch.setattr(effort, "measured", in_this_process)
    model = save_tiny(tmp_path / "model", max_position_embeddings=512)
    calib, text = write_text(tmp_path / "calib.txt"), write_text(tmp_path / "held_out.txt", 3000)
    output = tmp_path / "effort.json"

    def go(*more: str) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
        told.clear()
        given = [str(model), "--calib", f"{calib}:0.75,self:0.25", "--text", str(text), "--output", str(output)]
        given += [
            "--max-tokens",
            "1024",
            "--blocks",
            "0.8",
            "--variant",
            f"small=--effort quick {SMALL} --calib {{calib}}",
        ]
        given += ["--variant", f"adapt-pruner=--method adapt-pruner --calib {{alone}} {SMALL}"]
        given += ["--only", "small", "--only", "adapt-pruner"]
        monkeypatch.setattr(sys, "argv", ["effort.py", *given, *more])
        effort.main()
        return json.loads(output.read_text()), list(told)

    return go


def test_variants_are_run_in_turns_and_once(run: Any, tmp_path: Path) -> None:
    report, told = run("--repeats", "2")
    assert [(each["name"], each["repeat"]) for each in report["runs"]] == [
        (name, repeat) for repeat in (0, 1) for name in ("small", "adapt-pruner")
    ]
    assert [each[0] for each in told] == ["prune", "eval"] * 4
    assert told[0][told[0].index("--calib") + 1].endswith("calib.txt:0.75,self:0.25")
    assert told[2][told[2].index("--calib") + 1].endswith("calib.txt")
    for each in report["runs"]:
        assert (each["seconds"], each["cpu_seconds"], each["load"], each["peak_bytes"]) == (2.0, 3.5, 1.5, 2**30)
        assert each["texts"][0]["kl"] > 0
    assert str(tmp_path) not in json.dumps(report)
    assert run("--repeats", "2") == (report, [])
    assert (tmp_path / "effort.png").stat().st_size > 1000


def test_rows_of_an_earlier_report(run: Any, tmp_path: Path) -> None:
    report, _ = run()
    small = next(each for each in report["runs"] if each["name"] == "small")
    best = {**small, "method": "prunekit, 512 sequences", "blocks": 0.8, "texts": [{**small["texts"][0], "kl": 0.0}]}
    earlier = {"asked": report["asked"], "runs": [best, {**best, "blocks": 0.6}]}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    report, told = run("--stored", str(tmp_path / "earlier.json"))
    assert not told and [each.get("stored") for each in report["runs"]] == [None, None, "earlier.json"]
    by_name = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in effort.table(report).splitlines()[2:]}
    adapt, own = (float(by_name[name][2]) for name in ("adapt-pruner", "small"))
    assert by_name["best (stored)"][3] == "100%" and by_name["adapt-pruner"][3] == "0%"
    assert int(by_name["small"][3].strip("%")) == pytest.approx(100 * (adapt - own) / adapt, abs=2)
    earlier["asked"]["dtype"] = "float32"
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    with pytest.raises(SystemExit, match="another dtype"):
        run("--stored", str(tmp_path / "earlier.json"))


def test_a_failed_run_is_told(run: Any) -> None:
    report, _ = run("--variant", "small=--effort quick --set sequences=0 --calib {calib}")
    assert "at least 1" in report["runs"][0]["error"] and "small" not in effort.table(report)


def test_what_a_command_takes(tmp_path: Path) -> None:
    made, spent = measured(["methods"])
    assert made["methods"] and spent.seconds > 0 and spent.cpu_seconds > 0.3 and spent.peak_bytes > 2**25
    with pytest.raises(effort.subprocess.CalledProcessError) as failed:
        measured(["inspect", tmp_path / "nothing"])
    assert "nothing" in failed.value.stderr
