"""benchmarks/quality/ablation.py on a tiny model: every combination once, cut alike, and gone on with where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.quality import ablation
from tests.support.command import save_tiny, write_text


def read_table(output: Path) -> list[str]:
    return output.with_suffix(".md").read_text().splitlines()


def test_every_combination_is_cut_refitted_and_rescaled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", max_position_embeddings=512)
    calib, text = write_text(tmp_path / "calib.txt"), write_text(tmp_path / "held_out.txt", 3000)
    output = tmp_path / "ablation.json"
    given = [str(model), "--calib", str(calib), "--text", str(text), "--sequences", "16", "--length", "16"]
    given += ["--scored", "4", "--blocks", "0.7", "--max-tokens", "1024", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *given])
    ablation.main()
    report = json.loads(output.read_text())
    runs = {(run["widths"], run["units"], run["stage"]): run["texts"][0] for run in report["runs"]}
    assert len(runs) == len(report["runs"]) == len(ablation.WIDTHS) * len(ablation.UNITS) * len(ablation.STAGES)
    for widths in ablation.WIDTHS:
        cut = [runs[widths, units, "cut"]["kl"] for units in ablation.UNITS]
        assert all(kl > 0 for kl in cut) and len(set(cut)) > 1
        for units in ablation.UNITS:
            # A refit moves every projection that lost an input.
            assert runs[widths, units, "refit"]["kl"] != runs[widths, units, "cut"]["kl"]
    assert len(read_table(output)) == 2 + len(ablation.WIDTHS) * len(ablation.UNITS)

    again = ["ablation.py", *given, "--only", "global", "--units", "fisher", "--no-rescale"]
    monkeypatch.setattr(sys, "argv", again)
    report["runs"] = [run for run in report["runs"] if (run["widths"], run["units"]) != ("global", "fisher")]
    output.write_text(json.dumps(report))
    ablation.main()
    added = json.loads(output.read_text())["runs"][len(report["runs"]) :]
    assert [run["stage"] for run in added] == ["cut", "refit"]
    assert added[1]["texts"][0]["kl"] == pytest.approx(runs["global", "fisher", "refit"]["kl"], rel=1e-4)
    assert any(line.startswith("| global | fisher |") and "; – |" in line for line in read_table(output))

    monkeypatch.setattr(sys, "argv", ["ablation.py", *given])
    report["runs"] = [run for run in report["runs"] if run["units"] != "fisher"]
    output.write_text(json.dumps(report))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(ablation.Bench, "run", lambda self, widths, units: asked.append((widths, units)) or [])
    ablation.main()
    assert asked == [(widths, "fisher") for widths in ablation.WIDTHS]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *given, "--blocks", "0.6"])
    with pytest.raises(SystemExit, match="other settings"):
        ablation.main()
