"""benchmarks/quality/scaling.py: what it measures on a tiny model, and the exponents it draws from sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import scaling as growth


def test_every_step_is_measured_on_a_small_model() -> None:
    found = growth.measure({"layers": 2, "width": 128, "tokens": 4 * growth.LENGTH}, "cpu")
    assert set(found["seconds"]) == set(found["peak_bytes"]) == set(growth.STEPS)
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert all(peak > 2**20 for peak in found["peak_bytes"].values())


def test_exponents_of_known_growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seconds that grow with layers, width squared and the root of tokens; memory that grows with width alone."""

    asked: list[dict[str, int]] = []

    def apart(size: dict[str, int], device: str) -> dict[str, Any]:
        asked.append(size)
        seconds = size["layers"] * size["width"] ** 2 * size["tokens"] ** 0.5
        return {
            "parameters": 1,
            "seconds": dict.fromkeys(growth.STEPS, seconds),
            "peak_bytes": dict.fromkeys(growth.STEPS, size["width"]),
        }

    monkeypatch.setattr(growth, "_apart", apart)
    output = tmp_path / "growth.json"
    monkeypatch.setattr(sys, "argv", ["growth.py", "--output", str(output)])
    growth.main()
    report = json.loads(output.read_text())
    for what, seconds, peak in (("layers", 1, 0), ("width", 2, 1), ("tokens", 0.5, 0)):
        assert report["exponents"][what]["refit"] == {"seconds": pytest.approx(seconds), "peak_bytes": peak}
    # Three sizes of each of three, the base shared by all.
    assert len(report["runs"]) == 7

    # A run that was cut short goes on where it was.
    report["runs"] = [run for run in report["runs"] if run["size"]["tokens"] == growth.BASE["tokens"]]
    output.write_text(json.dumps(report))
    asked.clear()
    growth.main()
    assert [size["tokens"] for size in asked] == [2 * growth.BASE["tokens"], 4 * growth.BASE["tokens"]]
    assert json.loads(output.read_text())["exponents"]["tokens"]["refit"]["seconds"] == pytest.approx(0.5)
    monkeypatch.setattr(sys, "argv", ["growth.py", "--scale", "2", "--output", str(output)])
    with pytest.raises(SystemExit, match="other settings"):
        growth.main()
