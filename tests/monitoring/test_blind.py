"""A watch that no longer sees what it saw: lost fields, lines of no use, and a log that has stopped."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunekit.monitoring.baseline.calibrate import Calibrated
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import read_log
from prunekit.monitoring.running.run import TellConfig, WatchResult, watch_run
from prunekit.monitoring.statistics.null import Null
from prunekit.monitoring.verdicts.rule import BLIND, judge
from tests.support.request_logs import make_baseline, rows

CONFIG = WatchConfig(window=50)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Baseline]:
    return make_baseline(tmp_path_factory.mktemp("baseline"), 3000)


def run(made: tuple[Path, Baseline], folder: Path, lines: list[Any], notes: list[str] | None = None) -> WatchResult:
    """One look at a log of these ``lines``, with the figures for Prometheus beside it."""
    log = folder / "log.jsonl"
    log.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    told = (lambda words: None) if notes is None else notes.append
    return watch_run([log], made[0], folder / "watch", tell=TellConfig(prometheus=folder / "w.prom"), note=told)


def figures(folder: Path) -> dict[str, float]:
    lines = (folder / "w.prom").read_text().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def test_lines_without_a_request_are_a_notice(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    notes: list[str] = []
    result = run(made, tmp_path, [{"level": "info", "text": "x"}] * 2000, notes)
    assert (result.verdict, result.alarm, result.data["windows"]) == ("notice", False, 0)
    assert result.data["reasons"] == [
        "No whole window was read yet.",
        "Of the last 2,000 lines of the log 2,000 hold no request that can be read, and of the reference's 0%.",
    ]
    assert result.data["do"] == BLIND and any(each.startswith("notice: ") for each in notes)
    assert figures(tmp_path)["prunekit_watch_blind"] == 1
    assert figures(tmp_path)['prunekit_watch_verdict{verdict="notice"}'] == 1
    assert json.loads((tmp_path / "watch" / "watch.json").read_text())["verdict"] == "notice"


def test_half_of_the_lines_may_be_of_no_use(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    """One useless line after each request is borne; three are a notice of every window, until they end."""
    for count, verdict in ((1, "ok"), (3, "notice")):
        folder = tmp_path / str(count)
        folder.mkdir()
        lines = [line for row in rows(200, 2) for line in (row, *["{"] * count)]
        result = run(made, folder, lines)
        assert (result.verdict, result.data["windows"]) == (verdict, 4)
        assert figures(folder)["prunekit_watch_blind"] == (verdict == "notice")
    history = [json.loads(each) for each in (folder / "watch" / "history.jsonl").read_text().splitlines()]
    assert [each["verdict"] for each in history] == ["notice"] * 4 and all(each["blind"] for each in history)
    log = folder / "log.jsonl"
    with log.open("a") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows(300, 3))
    result = watch_run([log], made[0], folder / "watch")
    assert result.verdict == "ok" and not result.data["blind"] and result.data["do"] == "Nothing to do."


def test_a_reference_with_useless_lines_expects_them(tmp_path: Path) -> None:
    """Of a collector's file most batches hold other spans: five of six here, and nobody is told of it."""
    other = json.dumps({"resourceSpans": []})

    def mixed(count: int, seed: int) -> list[Any]:
        return [line for row in rows(count, seed) for line in (row, *[other] * 5)]

    log = tmp_path / "reference.jsonl"
    log.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in mixed(1000, 1)))
    base = watch_init(log, tmp_path / "base.json", config=CONFIG)
    assert base.log["empty"] == 5000
    (tmp_path / "same").mkdir()
    assert run((tmp_path / "base.json", base), tmp_path / "same", mixed(200, 2)).verdict == "ok"
    (tmp_path / "lost").mkdir()
    lost = run((tmp_path / "base.json", base), tmp_path / "lost", [other] * 1000)
    assert lost.verdict == "notice" and "of the reference's 83%" in lost.data["reasons"][-1]


def test_outcomes_are_lines_of_use(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"id": "a", "n_in": 3}\n{"id": "a", "outcome": "accepted"}\n{"x": 1}\n{\n{"id": "a", "n_in": 3}\n')
    problems = Problems()
    assert len(list(read_log([log], problems))) == 2
    assert (problems.lines, problems.requests, problems.empty) == (5, 1, 3)


@pytest.mark.parametrize(
    ("fields", "signals"),
    [
        (["finish_reason"], {"cut_answers", "errors"}),
        (["latency_ms"], {"latency"}),
        (["prompt"], {"token_mix"}),
        (["outcome"], {"error_rate", "rework_rate"}),
        (["answer", "n_out"], {"output_length", "repetition"}),
    ],
)
def test_a_lost_field_is_a_notice(
    made: tuple[Path, Baseline], tmp_path: Path, fields: list[str], signals: set[str]
) -> None:
    later = [without(row, *fields) for row in rows(200, 3)]
    result = run(made, tmp_path, [*rows(100, 2), *later])
    assert result.verdict == "notice" and not result.alarm and result.data["do"] == BLIND
    assert {each.split(":")[0] for each in result.data["reasons"]} == signals
    history = [json.loads(each) for each in (tmp_path / "watch" / "history.jsonl").read_text().splitlines()]
    # Of 60 windows of the reference each had a figure: a chance of 1/62 each, so four in a row are none.
    assert [each["verdict"] for each in history] == ["ok"] * 5 + ["notice"]
    # Counted on from run to run, and over when the field is back.
    with (tmp_path / "log.jsonl").open("a") as handle:
        handle.writelines(json.dumps(without(row, *fields)) + "\n" for row in rows(50, 5))
    again = watch_run([tmp_path / "log.jsonl"], made[0], tmp_path / "watch")
    assert (again.verdict, again.data["windows"]) == ("notice", 7)
    assert all("in the last 5 windows" in each for each in again.data["blind"])
    with (tmp_path / "log.jsonl").open("a") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows(100, 4))
    assert watch_run([tmp_path / "log.jsonl"], made[0], tmp_path / "watch").verdict == "ok"


def test_a_blind_watch_keeps_its_alarm(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    """Half of the requests fail, then the field that tells it is lost."""
    broken = [{**row, "finish_reason": "error"} if at % 2 else row for at, row in enumerate(rows(300, 2))]
    lines = [*broken, *(without(row, "finish_reason") for row in rows(500, 3))]
    result = run(made, tmp_path, lines)
    assert result.verdict == "investigate" and result.alarm
    assert any(each.startswith("errors: no figure") for each in result.data["reasons"])


def test_how_many_windows_are_no_chance() -> None:
    def after(windows: int, looked: int | None) -> int:
        null = Null(0, 1, windows, windows, 0, "none", 0, 0)
        return Calibrated("latency", "load", "latency", null, 5.0, None, None, looked).silent_after

    assert (after(512, 512), after(100, 100), after(8, 8)) == (3, 3, 6)
    # Outcomes that come in one window of five.
    assert after(20, 100) == math.ceil(math.log(1e-6) / math.log(81 / 102)) == 60
    assert after(60, None) == after(60, 60) == 4


def test_windows_without_outcomes_are_borne_where_they_are_usual(tmp_path: Path) -> None:
    def sparse(count: int, seed: int) -> list[dict[str, Any]]:
        return [row if at // 50 % 5 == 0 else without(row, "outcome") for at, row in enumerate(rows(count, seed))]

    log = tmp_path / "reference.jsonl"
    log.write_text("\n".join(map(json.dumps, sparse(3000, 1))))
    base = watch_init(log, tmp_path / "base.json", config=CONFIG)
    assert run((tmp_path / "base.json", base), tmp_path, sparse(2000, 2)[250:]).verdict == "ok"


def test_the_rule_of_a_blind_watch() -> None:
    assert judge([], (), ["No figure."]).verdict == "notice" and judge([], (), ["No figure."]).do == BLIND
    over = judge([], ["Too many errors."], ["No figure."])
    assert over.verdict == "fall back to dense now" and over.reasons == ("Too many errors.", "No figure.")


def test_when_the_newest_request_came(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    """Also of requests that make no whole window yet, and not of a broken clock or an outcome that comes later."""
    name = "prunekit_watch_last_request_timestamp_seconds"
    now = time.time()
    first = [{**row, "ts": now - 9000 + at} for at, row in enumerate(rows(60, 2))]
    result = run(made, tmp_path, first)
    assert result.data["windows"] == 1 and figures(tmp_path)[name] == pytest.approx(now - 9000 + 59, abs=1)
    broken = {**first[0], "id": "x", "ts": now + 1e8}
    late = {"id": first[0]["id"], "ts": now, "outcome": "rejected"}
    run(made, tmp_path, [*first, broken, late])
    assert figures(tmp_path)[name] == pytest.approx(now - 9000 + 59, abs=1)
    # Nothing new: it stays.
    tell = TellConfig(prometheus=tmp_path / "w.prom")
    watch_run([tmp_path / "log.jsonl"], made[0], tmp_path / "watch", tell=tell)
    assert figures(tmp_path)[name] == pytest.approx(now - 9000 + 59, abs=1)


def test_an_older_baseline_knows_less(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    """Without the counts of lines of no use, of requests, and of windows that were looked at."""
    data = json.loads(made[0].read_text())
    del data["log"]["empty"], data["reference"]["requests"]
    for each in data["signals"]:
        del each["looked"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(data))
    result = run((old, replace(made[1])), tmp_path, [*rows(200, 2), *["{}"] * 100])
    assert result.verdict == "notice" and len(result.data["blind"]) == 1
