"""A watch from log to alarm: baselines, verdicts, and what is refused."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from prunekit.monitoring.alarms.command import parse_command
from prunekit.monitoring.baseline.calibrate import alarms_a_year
from prunekit.monitoring.baseline.gather import windows
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import Baseline, read_baseline
from prunekit.monitoring.baseline.times import Times
from prunekit.monitoring.log.fields import request_of
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.running.run import TellConfig, watch_run
from prunekit.monitoring.verdicts.rule import DO, Up, judge
from prunekit.monitoring.verdicts.watcher import Watcher
from prunekit.utils.files.hashes import sha256
from tests.support.command import run_apart, start
from tests.support.request_logs import history, refuse, rows, write_log

CONFIG = WatchConfig(window=50)


def test_a_baseline_is_read_as_it_was_written(made: tuple[Path, Baseline]) -> None:
    path, baseline = made
    again = read_baseline(path)
    assert again.to_dict() == baseline.to_dict()
    assert baseline.per_day == pytest.approx(2000, rel=0.01) and baseline.log["windows"] == 100
    off = {each.name for each in baseline.signals if each.is_off}
    assert off == {"ttft", "edit_distance"}
    assert all(each.decides for each in baseline.signals if each.name not in off | {"errors"})
    rate = baseline.bounds["error"]
    assert rate["reference"] == pytest.approx(0.03, abs=0.01) and rate["bound"] > rate["reference"] + 0.01
    assert "prompt" not in json.dumps({key: value for key, value in baseline.log.items()})


def test_broken_clocks_do_not_change_the_rate(tmp_path: Path) -> None:
    """1,000 requests, one an hour; one line is of 1992, one of 2090."""
    lines = [json.dumps({"ts": 1.8e9 + 3600 * at, "n_in": 5, "n_out": at % 9}) for at in range(1000)]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines))
    plain = watch_init(log, tmp_path / "plain.json", config=CONFIG)
    assert plain.per_day == pytest.approx(24 * 1000 / 999)
    lines[10:10] = ['{"ts": 7e8, "n_in": 5}']
    lines[500:500] = ['{"ts": 3.8e9, "n_in": 5}']
    log.write_text("\n".join(lines))
    jumps = watch_init(log, tmp_path / "jumps.json", config=CONFIG)
    assert jumps.per_day == plain.per_day and jumps.log["first"] == 1.8e9
    assert any("2 of 1,002 requests have a time more than a week" in each for each in jumps.notes)
    assert jumps.log["weekdays"] == list(range(7))


def test_a_promise_that_can_t_be_kept_is_told(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 450, 1)
    config = WatchConfig(window=50, requests_per_day=1e6)
    base = watch_init(log, tmp_path / "base.json", config=config)
    expected = alarms_a_year(base.signals, config, 1e6)
    assert max(each.h for each in base.signals if each.h is not None) == 60 and expected > 2
    assert any(f"About {expected:,.3g} false alarms a year are to be expected, not 1" in each for each in base.notes)
    calm = watch_init(log, tmp_path / "calm.json", config=WatchConfig(window=50, requests_per_day=10, false_alarms=9))
    assert alarms_a_year(calm.signals, calm.config, 10) == pytest.approx(9, rel=0.01)
    assert not any("are to be expected" in each for each in calm.notes)


def test_a_log_with_a_pause_of_a_week_is_one() -> None:
    def span(*days: int) -> Any:
        times = Times()
        for day in days:
            times.add(Request(str(day), ts=1.8e9 + 86400 * day, n_in=1))
        return times.span()

    assert (span(0, 7, 8).counted, span(0, 7, 8).outside) == (3, 0)
    assert (span(0, 8, 9).counted, span(0, 8, 9).outside) == (2, 1)
    assert span(3).per_day is None and span().per_day is None


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("healthy", "ok"),
        ("domain", "notice"),
        ("broken", "investigate"),
        ("rejected", "fall back to dense now"),
    ],
)
def test_verdicts(made: tuple[Path, Baseline], tmp_path: Path, kind: str, verdict: str) -> None:
    log = write_log(tmp_path / "log.jsonl", 1500, 2, kind=kind)
    result = watch_run([log], made[0], tmp_path / "watch")
    assert result.verdict == verdict and result.alarm == (verdict not in ("ok", "notice"))
    assert result.data["windows"] == 30 == len(history(tmp_path / "watch"))
    data = json.loads((tmp_path / "watch" / "watch.json").read_text())
    assert data["format"] == "prunekit-watch" and data["verdict"] == verdict
    # No text of a request goes where others may read it.
    assert all("w1 " not in file.read_text() for file in (tmp_path / "watch").iterdir())


def test_two_halves_of_one_log_give_no_more_alarms_than_promised(tmp_path: Path) -> None:
    """200 weeks of 100 requests a day, judged by a baseline of the weeks before them."""
    weeks, per_day = 200, 100
    log = write_log(tmp_path / "reference.jsonl", 6000, 5, per_day=per_day)
    baseline = watch_init(log, tmp_path / "base.json", config=CONFIG)
    watcher, before, alarms = Watcher(baseline), False, 0
    requests = ((made, None) for row in rows(weeks * 7 * per_day, 6, per_day=per_day) if (made := _request(row)))
    for each in windows(requests, CONFIG.window, ()):
        verdict, _ = watcher.judge(each.figures, each.sampled)
        alarms += verdict.verdict != "ok" and not before
        before = verdict.verdict != "ok"
    assert watcher.windows == 2800
    # 3.8 are promised of the sums, with notices; of them more than 8 come once in 60 such runs.
    assert alarms <= 8


def _request(row: dict[str, Any]) -> Request | None:
    return request_of(row, b"", lambda kind: None)


def test_the_rule() -> None:
    def up(kind: str, decides: bool = True, alone: bool = False) -> Up:
        return Up(kind, kind, decides, f"{kind} is up.", alone)

    assert judge([]).verdict == "ok"
    assert judge([up("input")]).verdict == "notice"
    assert judge([up("input"), up("output")]).verdict == "notice"
    assert judge([up("output")]).verdict == "investigate"
    assert judge([up("quality")]).verdict == "investigate"
    assert judge([up("quality"), up("input")]).verdict == "re-prune"
    assert judge([up("weights"), up("quality"), up("input")]).verdict == "investigate"
    assert judge([up("quality", False), up("output", False)]).verdict == "notice"
    assert judge([up("quality")], ["Too many errors."]).verdict == "fall back to dense now"
    # What prompts can't explain, or what was there before they changed.
    assert judge([up("server")]).verdict == judge([up("server"), up("input")]).verdict == "investigate"
    assert judge([up("server"), up("quality"), up("input")]).verdict == "investigate"
    assert judge([up("output", alone=True), up("input")]).verdict == "investigate"
    # A signal that only warns excuses nothing, and adds nothing.
    assert judge([up("output"), up("input", False)]).verdict == "investigate"
    assert judge([up("quality"), up("input", False)]).verdict == "investigate"
    assert judge([up("server", False), up("input")]).verdict == "notice"
    # More traffic makes answers slower, and is no fault of the model.
    assert judge([up("load")]).verdict == "notice" and "Look at the server" in judge([up("load")]).do
    assert judge([up("load"), up("input")]).do == DO["notice"]
    assert judge([up("load"), up("output")]).verdict == "investigate"
    assert judge([up("input")], ["Too many errors."]).reasons == ("Too many errors.", "input is up.")


def _fails(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "ts", "prompt", "n_in")} | {"finish_reason": "error"}


def _repeats(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "answer": " ".join(["again"] * 12), "n_out": 12}


@pytest.mark.parametrize("fault", [_fails, _repeats])
def test_other_prompts_end_no_alarm(made: tuple[Path, Baseline], tmp_path: Path, fault: Any) -> None:
    """A fault, then the same fault and other prompts: one alarm, which lasts, from run to run."""
    log, folder = tmp_path / "log.jsonl", tmp_path / "watch"
    tell = TellConfig(webhook="http://127.0.0.1:9/hook")
    log.write_text("".join(json.dumps(fault(row)) + "\n" for row in rows(500, 2)))
    first = watch_run([log], made[0], folder, tell=tell, note=lambda words: None)
    assert first.verdict == "investigate"
    for seed in (3, 4):
        with log.open("a") as handle:
            handle.writelines(json.dumps(fault(row)) + "\n" for row in rows(500, seed, kind="domain"))
        later = watch_run([log], made[0], folder, tell=tell, note=lambda words: None)
    assert later.data["last_window"]["signals"]["token_mix"]["active"]
    assert later.verdict == "investigate" and later.alarm and later.data["alarm"]["id"] == first.data["alarm"]["id"]
    posts = json.loads((folder / "state.json").read_text())["teller"]["posts"]
    assert [each["status"] for each in posts] == ["firing"]
    # Alarms of another release, which begin with the same window, have another name.
    assert first.data["alarm"]["id"] == f"investigate-{first.data['alarm']['window']:08d}-{sha256(made[0])[:12]}"
    # It ends with its cause, though prompts stay other ones.
    with log.open("a") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows(2500, 5, kind="domain"))
    assert watch_run([log], made[0], folder, note=lambda words: None).verdict == "notice"


def test_answers_that_change_with_prompts_are_a_notice(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    """Answers of another length to other prompts: what prompts explain is no alarm. Failures to them are one."""
    log = tmp_path / "log.jsonl"
    other = [{**row, "n_out": 200} for row in rows(500, 2, kind="domain")]
    log.write_text("".join(json.dumps(row) + "\n" for row in other))
    result = watch_run([log], made[0], tmp_path / "watch")
    up = {name for name, each in result.data["last_window"]["signals"].items() if each.get("active")}
    assert {"token_mix", "output_length"} <= up and result.verdict == "notice"
    with log.open("a") as handle:
        handle.writelines(json.dumps(_fails(row)) + "\n" for row in rows(300, 3, kind="domain"))
    assert watch_run([log], made[0], tmp_path / "watch").verdict == "investigate"


def test_what_is_refused(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 60, 3)
    base, out = tmp_path / "base.json", tmp_path / "watch"
    refuse("which make 1 windows of 50; 8 windows are needed", lambda: watch_init(log, base, config=CONFIG))
    refuse("from 50 to", lambda: WatchConfig(window=49))
    refuse("False alarms a year", lambda: WatchConfig(false_alarms=float("nan")))
    untimed = tmp_path / "untimed.jsonl"
    untimed.write_text('{"n_in": 5}\n' * 500)
    refuse("--requests-per-day", lambda: watch_init(untimed, base, config=CONFIG))
    assert not base.exists()
    watch_init(untimed, base, config=WatchConfig(window=50, requests_per_day=100))
    refuse("already exists", lambda: watch_init(untimed, base, config=CONFIG))
    base.write_text("{}")
    refuse("is no baseline", lambda: watch_run([log], base, out))
    refuse("does not exist", lambda: watch_run([tmp_path / "missing"], made[0], out))
    refuse("named twice", lambda: watch_run([log, log], made[0], out))
    refuse("no program 'no-such-program'", lambda: parse_command("no-such-program --now"))
    refuse("no URL", lambda: TellConfig(webhook="file:///etc/passwd"))
    mine = tmp_path / "mine.txt"
    mine.write_text("notes")
    tell = TellConfig(prometheus=mine)
    refuse("was not written by prunekit watch", lambda: watch_run([log], made[0], out, tell=tell))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("")
    refuse("holds other things than a watch", lambda: watch_run([log], made[0], tmp_path / "mine"))
    good = json.loads(made[0].read_text())
    for path, value in (
        (("signals", 0, "null", "effective"), 0),
        (("signals", 0, "null", "sd"), 0.0),
        (("reference", "lengths_in"), [1.0]),
        (("reference", "mix", "counts"), [1.0]),
        (("bounds", "error", "bound"), 1.0),
    ):
        spoiled = json.loads(json.dumps(good))
        inner = spoiled
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        base.write_text(json.dumps(spoiled))
        refuse("is damaged", lambda: read_baseline(base))
    watch_run([log], made[0], out)
    other = write_log(tmp_path / "reference.jsonl", 500, 9)
    watch_init(other, tmp_path / "other.json", config=CONFIG)
    refuse("goes on from another baseline", lambda: watch_run([log], tmp_path / "other.json", out))
    (out / "state.json").write_text('{"format": "prunekit-watch-state", "version": 1, "baseline": 5}')
    refuse("another baseline", lambda: watch_run([log], made[0], out))
    (out / "state.json").write_text("{")
    refuse("not valid JSON", lambda: watch_run([log], made[0], out))


def test_the_command(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 700, 2, kind="broken")
    told = ("watch", "run", log, "--baseline", made[0], "-q", "--once", "-o", tmp_path / "w")
    done = run_apart(*told, "--json")
    assert done.code == 3 and done.json["verdict"] == "investigate" and not done.err, done
    done = run_apart(*told)
    assert "The newest request came at 2025-10-09T17:" in done.out, done


def test_following_reads_what_comes(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    data = write_log(tmp_path / "whole.jsonl", 400, 3).read_bytes()
    log = tmp_path / "log.jsonl"
    log.write_bytes(data[: len(data) // 2])
    told = ("watch", "run", log, "--baseline", made[0], "--every", "0.1", "-o", tmp_path / "w")
    with start(*told) as process:
        try:
            _wait(lambda: _windows(tmp_path / "w") == 4)
            with log.open("ab") as handle:
                handle.write(data[len(data) // 2 :])
            _wait(lambda: _windows(tmp_path / "w") == 8)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert len(history(tmp_path / "w")) == 8


def _windows(folder: Path) -> int:
    try:
        return int(json.loads((folder / "watch.json").read_text())["windows"])
    except (OSError, ValueError):
        return 0


def _wait(until: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)
