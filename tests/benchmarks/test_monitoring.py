"""The benchmark of the watch: weeks that share nothing with the reference, and changes that are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.monitoring import __main__ as command
from benchmarks.monitoring.pools import Pool, blocks, drawn
from benchmarks.monitoring.simulate import WINDOW, Stock, begins
from prunekit.monitoring.log.request import sample
from prunekit.monitoring.scoring.contexts import ScoringConfig

READ = ScoringConfig().prompts


def write(folder: Path, name: str, scored: int, others: int = 0, shift: float = 0.0, seed: int = 0) -> None:
    """A pool of made-up requests, whose scores are noise around ``shift``."""
    rng = np.random.default_rng(seed)
    count = scored + others
    prompts, answers = rng.integers(0, 500, (count, 30)).tolist(), rng.integers(0, 500, (count, 15)).tolist()
    rows = []
    for place in range(scored):
        a, b, c, d = (rng.normal(size=4) * 0.1 + shift).tolist()
        shadow = {"kl": abs(a) + 0.2, "agreement": 0.8 - shift / 10, "prompt_increase": b, "answer_increase": -c}
        rows.append({"id": f"{name}-{place}", "prompt_nll": 3 + d, "answer_nll": 2 + c, "shadow": shadow})
    np.save(folder / f"{name}.npy", rng.normal(size=(scored, 8)).astype(np.float16))
    (folder / f"{name}.json").write_text(json.dumps({"prompts": prompts, "answers": answers, "scores": rows}))


def test_what_the_models_read_has_scores_and_nothing_comes_twice(tmp_path: Path) -> None:
    write(tmp_path, "text", 10 * READ, 10 * (WINDOW - READ))
    stock = Stock.of(tmp_path, "text")
    first, rest = stock.halves(0.3, np.random.default_rng(0))
    weeks = [
        [*part.weeks(count, np.random.default_rng(1), begin)] for part, count, begin in ((first, 3, 0), (rest, 7, 9))
    ]
    for each in weeks:
        for at in range(0, len(each), WINDOW):
            assert all(row.id in stock.placed for row in sample(each[at : at + WINDOW], READ))
    rows = [row for each in weeks for row in each]
    assert len(rows) == 10 * WINDOW == len({row.prompt_ids for row in rows}) == len({row.id for row in rows})
    assert len(stock.placed) == 10 * READ
    assert len(stock.without(READ).scored) == 9 * READ


def test_a_change_is_found_and_two_halves_are_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUIET_WEEKS", 4)
    weeks = command.REFERENCE_WINDOWS + 4
    write(tmp_path, "politics", weeks * READ, weeks * (WINDOW - READ))
    write(tmp_path, "noise-scored", 8 * READ, shift=1.0, seed=1)
    report = {"asked": {"seeds": 1}, "runs": []}
    command.run(report, tmp_path, None)
    quiet, found = report["runs"]
    assert quiet["watched"] == "politics" and quiet["weeks_by_verdict"] == {"ok": 4} and quiet["signal_alarms"] == 0
    assert found["verdict_after_8_windows"] == {"investigate": 1}
    assert found["requests_until_alarm"]["median"] == WINDOW
    assert found["requests_until_each_signal"]["shadow_kl"]["found"] == 1
    # What is done is not done again.
    command.run(report, tmp_path, None)
    assert len(report["runs"]) == 2


def test_alarms_are_counted_where_they_begin() -> None:
    assert begins([("ok", []), ("notice", ["a"]), ("notice", ["a", "b"]), ("ok", []), ("notice", ["a"])]) == [
        (1, "a"),
        (2, "b"),
        (4, "a"),
    ]


def test_blocks_lie_beside_each_other_in_an_order_drawn_once(tmp_path: Path) -> None:
    class Words:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [int(each) for each in text.split()]}

    file = tmp_path / "text.txt"
    file.write_text(" ".join(map(str, range(45 * 7 + 3))))
    made = blocks(file, Words())
    assert sorted(each[0] for each in made) == [45 * place for place in range(7)]
    assert all(each == [*range(each[0], each[0] + 45)] for each in made)
    assert made == blocks(file, Words()) and drawn(7) == [each[0] // 45 for each in made]


def test_faults_have_requests_of_their_own() -> None:
    pools = {each.name: each for each in command.POOLS}
    later = [pools[name] for name in ("more-questions", "wrong-template", "noise-served")]
    assert {each.first for each in later} == {pools["questions"].count}
    assert all(isinstance(each, Pool) and each.count >= 8 * READ for each in command.POOLS)
