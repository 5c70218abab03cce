"""benchmarks/quality/verdicts.py on a tiny model: what is damaged, what is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import verdicts
from tests.support.command import make_command, save_tiny


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``run()`` judges a pruned model and its damaged copies, and returns the report."""
    model = save_tiny(tmp_path / "model", max_position_embeddings=512)
    good = tmp_path / "good"
    command = make_command(monkeypatch, capsys)
    assert not command("prune", model, "--method", "magnitude", "--blocks", "0.9", "--check", "none", "-o", good).code
    monkeypatch.setattr(verdicts, "MILD", ())
    monkeypatch.setattr(verdicts, "HARSH", ())
    monkeypatch.setitem(
        verdicts.DAMAGE, "one weight not a number", ("layers.1.mlp.up_proj.weight", verdicts._not_a_number)
    )
    output = tmp_path / "verdicts.json"

    def go() -> dict[str, Any]:
        words = ["verdicts", str(model), "--good", str(good), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", words)
        verdicts.main()
        report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return report

    return go


def test_each_model_is_judged_once(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run()
    found = {each["name"]: each for each in report["runs"]}
    assert list(found) == ["good", *verdicts.DAMAGE]
    assert found["good"]["meant"] == "good"
    assert found["good"]["verdict"] == "fine"
    assert found["one weight not a number"]["verdict"] == "broken"
    assert "| good | good | fine |" in capsys.readouterr().out
    monkeypatch.setattr(verdicts, "judged", lambda *_: pytest.fail("judged again"))
    assert run() == report
