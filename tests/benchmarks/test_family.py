"""python -m benchmarks.recovery.family on a tiny model: every size from nothing, one table, nothing done twice."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.spent import Spent
from benchmarks.recovery import family
from benchmarks.recovery.processes import Ended, objects
from tests.support.command import make_command, write_text
from tests.support.recovering import make_places

pytestmark = pytest.mark.usefixtures("single_threaded")
TRAINED = "--set text_length=16 --set text_held_out=4 --set batch_tokens=64 --set learning_rate=1e-3"
PRUNED = "--method adapt-pruner --set sequences=4 --set length=16 --set ffn_multiple=1"


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``go("--blocks", "0.7")`` makes a family in this process. Returns the report, and what prunekit was told."""
    places = make_places(tmp_path / "places", max_position_embeddings=1024)
    command = make_command(monkeypatch, capsys)
    told: list[list[str]] = []

    def measured(arguments: Any) -> tuple[Any, Spent]:
        told.append([*map(str, arguments)])
        ended = command(*told[-1], "--json")
        if ended.code:
            raise subprocess.CalledProcessError(ended.code, told[-1], stderr=ended.err)
        return json.loads(ended.out[ended.out.index("{") :]), Spent(1.0, 2.0, 2**20, 0.5)

    def run(arguments: Any, log: Path) -> Ended:
        told.append([*arguments])
        ended = command(*arguments)
        return Ended(ended.code, [*objects(ended.out)], Spent(2.0, 3.0, 2**20, 1.0), ended.err.strip()[-500:])

    monkeypatch.setattr(family, "measured", measured)
    monkeypatch.setattr(family, "run", run)
    held_out = [write_text(tmp_path / f"{name}.txt", 3000) for name in ("one", "two")]
    output = tmp_path / "family.json"

    def made(*given: str) -> tuple[Any, list[list[str]]]:
        told.clear()
        words = ["--dense", str(places / "dense"), "--calib", str(places / "text.txt"), "--tokens", "512"]
        words += [
            "--text",
            str(places / "text.txt"),
            *(word for text in held_out for word in ("--held-out", str(text))),
        ]
        words += ["--prune", PRUNED, "--recover", TRAINED, "--max-tokens", "1024", "--prompts", "2"]
        words += ["--bench", "--repeats 2 --prompt-tokens 16 --new-tokens 4 --max-minutes 0 --no-memory"]
        words += ["--dtype", "float32", "--folder", str(tmp_path / "models"), "--output", str(output)]
        family.main([*words, *given])
        return json.loads(output.read_text()), [*told]

    return made


def test_every_size_is_pruned_trained_judged_and_timed(go: Any, tmp_path: Path) -> None:
    first, told = go("--blocks", "0.7")
    assert [words[0] for words in told] == ["prune", "recover", "eval", "bench"] and len(first["runs"]) == 1
    report, told = go("--blocks", "0.7", "--blocks", "0.6")
    assert [words[0] for words in told] == ["prune", "recover", "eval", "bench"] and report["runs"][:1] == first["runs"]
    for entry, share in zip(report["runs"], (0.7, 0.6), strict=True):
        pruned, recovered = entry["judged"]["models"]
        assert pruned["share_of_blocks"] == recovered["share_of_blocks"] == pytest.approx(share, abs=0.02)
        assert [each["text"] for each in recovered["results"]] == ["one.txt", "two.txt"]
        assert recovered["recovery"][0]["tokens"] == entry["recovered"]["tokens"] == 512
        assert len(recovered["generation"]) == 2 and entry["timed"]["results"][0]["tpot"]["ratio"]["median"] > 0
    assert str(tmp_path) not in (tmp_path / "family.json").read_text()
    lines = (tmp_path / "family.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "dense",
        "70% pruned",
        "70% recovered",
        "60% pruned",
        "60% recovered",
    ]
    again, told = go("--blocks", "0.7", "--blocks", "0.6")
    assert told == [] and again == report
    with pytest.raises(SystemExit, match="other settings"):
        go("--blocks", "0.7", "--limit", "3")


def test_what_fails_says_why_and_keeps_what_was_done(go: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"recovered failed: .*learning_rate must be"):
        go("--blocks", "0.7", "--recover", "--set learning_rate=7")
    (entry,) = json.loads((tmp_path / "family.json").read_text())["runs"]
    assert set(entry) == {"blocks", "commit", "pruned"}


def test_scores_of_benchmarks_are_columns() -> None:
    score = {"task": "mmlu", "level": 0, "score": 0.25, "standard_error": 0.01, "baseline": 0.26}
    text = {"perplexity": 20.0, "baseline_perplexity": 15.0, "kl": 0.3, "nll_increase": 0.2, "agreement": 0.7}
    wrote = {"model": {"repetition": 0.2}, "baseline": {"repetition": 0.1}, "common_prefix": 9.0, "new_tokens": 64}
    tasks = {"scores": [score, {**score, "level": 1}]}
    model = {"parameters": 2e6, "results": [text], "generation": [wrote], "tasks": tasks}
    report = {
        "asked": {"held_out": ["one.txt"]},
        "runs": [{"blocks": 0.5, "judged": {"baseline_parameters": 3e6, "models": [model, model]}}],
    }
    head, _, dense, pruned, _ = family.table(report).splitlines()
    assert "| mmlu | decode" in head and "| 0.260 | – | 1 |" in dense
    assert pruned.endswith("| 2.0 | 20.0 | 0.300 | 0.200 | 70 % | 0.20 | 9.0 | 0.250 ± 0.010 | – | – |")
