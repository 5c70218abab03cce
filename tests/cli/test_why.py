"""`plan` and `inspect` say why each layer is as wide as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunekit.plan import Plan
from tests.support.command import DEFAULT, Command, make_command, save_tiny, set_options, write_text

SMALL = set_options(sequences=16, length=16, batch_size=4, ffn_multiple=1, scale_tokens=128, rescale="false")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return make_command(monkeypatch, capsys)


def test_why_stands_in_the_plan_the_table_and_the_picture(command: Command, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    one, other = write_text(tmp_path / "one.txt", 6000), write_text(tmp_path / "other.txt", 8000)
    file, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    asked = (model, "--blocks", "0.7", DEFAULT, "--calib", f"{one}:0.5,{other}:0.5", *SMALL, "--device", "cpu")
    done = command("plan", *asked, "-o", file, "--picture", picture)
    assert done.code == 0, done.err
    why = Plan.load(file).provenance["why"]
    assert why["unit"] == "MB of weights" and why["shadow_price"] > 0 and why["not_measured"] == []
    assert [layer["index"] for layer in why["layers"]] == [0, 1, 2, 3]
    assert all(set(layer["ffn"]["texts"]) == {"one.txt", "other.txt"} for layer in why["layers"])
    assert len({layer["words"] for layer in why["layers"]}) == 4
    shown = done.out[done.out.index("Why each layer is as wide as it is") :]
    first = why["layers"][0]["ffn"]
    assert f"{first['kept']:,}" in shown and f"{1e3 * first['narrower']:,.0f}"[:3] in shown and "Kendall's tau" in shown
    assert "without" in shown and f"≈{1e3 * first['loss_without']:,.0f}"[:3] in shown
    assert "for one MB of weights less" in picture.read_text().replace("\n", " ") or "<path" in picture.read_text()
    seen = command("inspect", file, "--json")
    assert json.loads(seen.out)["why"] == why
    assert "Why each layer" in command("inspect", file).out


def test_a_method_without_curves_says_so_in_one_sentence(command: Command, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    done = command("plan", model, "--blocks", "0.7", "--method", "magnitude", "-o", tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert "where loss curves decide it" in done.out and "why" not in Plan.load(tmp_path / "plan.json").provenance
