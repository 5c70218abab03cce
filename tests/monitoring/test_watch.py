"""A watch from log to alarm: verdicts, going on after any end, rotation, what is told and how often."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from prunekit.errors import PrunekitError
from prunekit.monitoring.alarms.command import Command, parse_command
from prunekit.monitoring.alarms.prometheus import escaped
from prunekit.monitoring.baseline.calibrate import alarms_a_year
from prunekit.monitoring.baseline.gather import windows
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import Baseline, read_baseline
from prunekit.monitoring.baseline.times import Times
from prunekit.monitoring.log.fields import request_of
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Seen
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.running.folder import Folder
from prunekit.monitoring.running.run import TellConfig, watch_run
from prunekit.monitoring.running.source import Source
from prunekit.monitoring.running.teller import Teller
from prunekit.monitoring.signals.protocol import Scored
from prunekit.monitoring.verdicts.rule import Up, judge
from prunekit.monitoring.verdicts.watcher import Watcher
from tests.support.command import ROOT
from tests.support.request_logs import make_baseline, rows, write_log

CONFIG = WatchConfig(window=50)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Baseline]:
    return make_baseline(tmp_path_factory.mktemp("baseline"), 5000)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_baseline_is_read_as_it_was_written(made: tuple[Path, Baseline]) -> None:
    path, baseline = made
    again = read_baseline(path)
    assert again.to_dict() == baseline.to_dict()
    assert baseline.per_day == pytest.approx(2000, rel=0.01) and baseline.log["windows"] == 100
    assert all(each.decides for each in baseline.signals if each.name != "errors")
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
    for each in windows(requests, CONFIG.window, False):
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


def test_a_growing_log_is_read_on(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    whole = write_log(tmp_path / "whole.jsonl", 1000, 3, kind="broken")
    watch_run([whole], made[0], tmp_path / "expected")
    data, growing = whole.read_bytes(), tmp_path / "log.jsonl"
    for end in (10, 30_000, 30_000, 100_005, len(data)):
        growing.write_bytes(data[:end])
        watch_run([growing], made[0], tmp_path / "watch")
    assert history(tmp_path / "watch") == history(tmp_path / "expected")


def test_rotated_logs_are_read_to_their_ends(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    lines = write_log(tmp_path / "whole.jsonl", 1000, 3).read_text().splitlines(keepends=True)
    watch_run([tmp_path / "whole.jsonl"], made[0], tmp_path / "expected")
    log = tmp_path / "log.jsonl"
    log.write_text("".join(lines[:230]))
    watch_run([log], made[0], tmp_path / "watch")
    with log.open("a") as handle:
        handle.writelines(lines[230:410])
    log.rename(tmp_path / "log.jsonl.2")
    (tmp_path / "log.jsonl.1").write_text("".join(lines[410:500]))
    log.write_text("".join(lines[500:]))
    os.utime(tmp_path / "log.jsonl.2", (1, 1))
    result = watch_run([log], made[0], tmp_path / "watch")
    assert history(tmp_path / "watch") == history(tmp_path / "expected") and not result.data["log"]["problems"]
    log.write_text("".join(lines[:60]))
    assert watch_run([log], made[0], tmp_path / "watch").data["log"]["problems"]["lost"]["lines"] == 1


def test_a_rotation_while_a_backlog_is_read_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"

    def write(file: Path, first: int, modified: int) -> None:
        file.write_text("".join(f'{{"id": "r{at}", "n_in": {at}}}\n' for at in range(first, first + 3)))
        os.utime(file, (modified, modified))

    def read(source: Source, meanwhile: Any) -> list[int | None]:
        got = []
        for request, _ in source.requests():
            got.append(request.n_in)
            if len(got) == 2:
                meanwhile()
        return got

    def source(problems: Problems) -> Source:
        write(log, 0, 1)
        before = Source([log], {}, Problems(), Seen())
        next(before.requests())
        log.rename(tmp_path / "log.jsonl.2")
        write(tmp_path / "log.jsonl.1", 3, 2)
        write(log, 6, 3)
        return Source([log], before.marks(), problems, Seen())

    def rotate() -> None:
        for old, new in ((".2", ".3"), (".1", ".2"), ("", ".1")):
            (tmp_path / f"log.jsonl{old}").rename(tmp_path / f"log.jsonl{new}")
        write(log, 9, 4)

    problems = Problems()
    rotated = source(problems)
    assert read(rotated, rotate) == [1, 2, 3, 4, 5, 6, 7, 8] and not problems.counts
    assert read(Source([log], rotated.marks(), problems, Seen()), lambda: None) == [9, 10, 11]
    for each in tmp_path.iterdir():
        each.unlink()
    assert read(source(problems), (tmp_path / "log.jsonl.1").unlink) == [1, 2, 6, 7, 8]
    assert problems.counts == {"lost": 1}


KILLED = """
import os, sys
from prunekit.monitoring.running import folder
written = 0
original = folder.Folder.write_state
def write_state(self, state):
    global written
    written += 1
    if written == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    original(self, state)
folder.Folder.write_state = write_state
from prunekit.monitoring.running import run
run._KEEP_EVERY = 0.0
run.watch_run(sys.argv[2:3], sys.argv[3], sys.argv[4])
"""


def test_a_killed_run_is_gone_on_with(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 600, 3)
    watch_run([log], made[0], tmp_path / "expected")
    again = [sys.executable, "-c", KILLED, "5", str(log), str(made[0]), str(tmp_path / "watch")]
    killed = subprocess.run(again, cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    watch_run([log], made[0], tmp_path / "watch")
    assert history(tmp_path / "watch") == history(tmp_path / "expected")


def test_two_runs_in_one_folder_refuse_each_other(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 60, 3)
    with Folder(tmp_path / "watch").locked(), pytest.raises(PrunekitError, match="Another `prunekit watch run` works"):
        watch_run([log], made[0], tmp_path / "watch")


def test_an_alarm_is_told_once(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 700, 2, kind="broken")
    script = (
        f"{sys.executable} -c \"import sys; open('{tmp_path}/told', 'a').write(sys.stdin.read())\" ; rm -rf /nothing"
    )
    tell = TellConfig(on_alarm=script, prometheus=tmp_path / "watch.prom")
    for _ in range(2):
        result = watch_run([log], made[0], tmp_path / "watch", tell=tell)
        assert result.alarm and result.data["telling_failures"] == 0
    (told,) = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert told["verdict"] == "investigate" and told["status"] == "firing" and told["reasons"]
    figures = (tmp_path / "watch.prom").read_text()
    assert 'prunekit_watch_verdict{verdict="investigate"} 1\n' in figures
    assert 'prunekit_watch_signal_active{signal="repetition"} 1\n' in figures
    assert escaped('a"b\\c\nd') == r"a\"b\\c\nd"


def test_reset_begins_anew(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 700, 2, kind="rejected")
    tell = TellConfig(webhook="http://127.0.0.1:9/hook")  # nobody is there, so posts wait
    before = watch_run([log], made[0], tmp_path / "watch", tell=tell)
    assert before.verdict == "fall back to dense now"
    log.write_text(log.read_text() + write_log(tmp_path / "more.jsonl", 300, 8).read_text())
    result = watch_run([log], made[0], tmp_path / "watch", reset=True, tell=tell)
    assert result.verdict == "ok" and result.data["windows"] == 20 and not result.alarm
    assert [each["window"] for each in history(tmp_path / "watch")] == list(range(1, 21))
    assert result.data["changes"][-1]["reasons"] == ["The watch began anew (--reset)."]
    posts = json.loads((tmp_path / "watch" / "state.json").read_text())["teller"]["posts"]
    (last,) = [each for each in posts if each["id"] == before.data["alarm"]["id"] and each["ended"] is not None]
    assert posts[-1] == last and posts[0]["status"] == "firing"
    with pytest.raises(PrunekitError, match="at most 86400"):
        watch_run([log], made[0], tmp_path / "watch", every=float("inf"))
    state = json.loads((tmp_path / "watch" / "state.json").read_text())
    state["session"]["alarm"] = {"id": "x"}
    (tmp_path / "watch" / "state.json").write_text(json.dumps(state))
    refuse("is damaged", lambda: watch_run([log], made[0], tmp_path / "watch"))


class Receiver(BaseHTTPRequestHandler):
    got: ClassVar[list[Any]] = []
    answers: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answers.pop(0) if self.answers else 200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def test_a_webhook_is_tried_again(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Receiver.got, Receiver.answers = [], [500, 500]
    log = write_log(tmp_path / "log.jsonl", 700, 2, kind="broken")
    tell = TellConfig(webhook=f"http://127.0.0.1:{server.server_port}/hook")
    try:
        notes: list[str] = []
        first = watch_run([log], made[0], tmp_path / "watch", tell=tell, note=notes.append)
        assert first.data["telling_failures"] == 2 and any("answer 500" in each for each in notes)
        watch_run([log], made[0], tmp_path / "watch", tell=tell)
        watch_run([log], made[0], tmp_path / "watch", tell=tell)
    finally:
        server.shutdown()
    assert len(Receiver.got) == 3
    posted = Receiver.got[-1]
    assert posted["version"] == "4" and posted["status"] == "firing" and posted["truncatedAlerts"] == 0
    (alert,) = posted["alerts"]
    assert alert["labels"]["verdict"] == "investigate" and alert["labels"]["alertname"] == "PrunekitWatch"
    assert alert["startsAt"].endswith("Z") and len(alert["fingerprint"]) == 16


def test_cool_down_and_one_command_at_a_time(tmp_path: Path) -> None:
    from prunekit.monitoring.alarms.alarm import Alarm

    clock = [1000.0]
    command = Command(["/bin/sleep", "30"], tmp_path / "log", 60, clock=lambda: clock[0])
    notes: list[str] = []
    teller = Teller({}, command=command, url=None, cool_down=3600, model="m", note=notes.append, now=lambda: clock[0])

    def alarm(verdict: str) -> Alarm:
        return Alarm(f"{verdict}-{clock[0]}", verdict, ("Because.",), "Act.", 1, 50, clock[0])

    teller.begin(alarm("investigate"))
    teller.begin(alarm("re-prune"))
    assert teller.held_back == 1
    teller.begin(alarm("fall back to dense now"))
    teller.work(lambda: None)
    assert command.running and len(teller.to_dict()["commands"]) == 2
    clock[0] += 61
    teller.work(lambda: None)
    assert teller.failures == 1 and "ended after 60 seconds" in notes[0] and command.running
    teller.stop()
    assert not command.running and len(teller.to_dict()["commands"]) == 1
    clock[0] += 3600
    teller.begin(alarm("re-prune"))
    assert teller.held_back == 1


def posting(state: dict[str, Any], clock: list[float], send: Callable[[str, dict[str, Any]], None]) -> Teller:
    """A teller with a webhook, as it goes on from what a state file holds, at the second in ``clock``."""
    return Teller(
        json.loads(json.dumps(state)),
        command=None,
        url="http://x",
        cool_down=3600,
        model="m",
        note=print,
        now=lambda: clock[0],
        send=send,
    )


def test_an_alarm_that_outlasts_the_cool_down_is_told() -> None:
    from prunekit.monitoring.alarms.alarm import Alarm

    clock, posted = [1000.0], list[tuple[str, str]]()

    def send(url: str, data: dict[str, Any]) -> None:
        posted.append((data["status"], data["alerts"][0]["labels"]["verdict"]))

    def teller(state: dict[str, Any]) -> Teller:
        return posting(state, clock, send)

    first = Alarm("re-prune-1", "re-prune", ("Because.",), "Act.", 1, 50, 1000.0)
    second, third = replace(first, id="re-prune-2"), replace(first, id="re-prune-3")
    one = teller({})
    one.begin(first)
    one.end(replace(first, ended=1001.0))
    one.begin(second)
    one.end(replace(second, ended=1002.0))
    one.begin(third)
    one.work(lambda: None)
    assert posted == [("firing", "re-prune"), ("resolved", "re-prune")] and one.held_back == 2
    clock[0] += 3601
    two = teller(one.to_dict())
    two.work(lambda: None)
    two.work(lambda: None)
    two.end(replace(third, ended=clock[0]))
    two.work(lambda: None)
    assert posted[2:] == [("firing", "re-prune"), ("resolved", "re-prune")]


def test_an_alarm_that_gives_way_to_one_held_back_is_not_told_as_over() -> None:
    """Investigate, then re-prune: a lesser verdict in the cool-down. Receivers keep an alarm until all is over."""
    from prunekit.monitoring.alarms.alarm import Alarm

    clock = [1000.0]

    def send(url: str, data: dict[str, Any]) -> None:
        posted.append((data["status"], data["alerts"][0]["annotations"]["alarm_id"]))

    def teller(state: dict[str, Any]) -> Teller:
        return posting(state, clock, send)

    def alarm(verdict: str) -> Alarm:
        return Alarm(verdict, verdict, ("Because.",), "Act.", 1, 50, clock[0])

    worse, lesser, worst = alarm("investigate"), alarm("re-prune"), alarm("fall back to dense now")
    posted: list[tuple[str, str]] = []
    one = teller({})
    one.begin(worse)
    one.begin(lesser, instead_of=worse)
    one.work(lambda: None)
    assert posted == [("firing", "investigate")] and one.held_back == 1
    # Told when the cool-down is over: then the first one ends.
    two, state = teller(one.to_dict()), one.to_dict()
    clock[0] += 3601
    two.work(lambda: None)
    assert posted[1:] == [("firing", "re-prune"), ("resolved", "investigate")]
    # Or all is over before.
    posted.clear()
    three = teller(state)
    three.end(replace(lesser, ended=clock[0]))
    three.work(lambda: None)
    assert posted == [("resolved", "investigate")] and not three.to_dict()["lasting"]
    # Or a graver one comes.
    posted.clear()
    four = teller(state)
    four.begin(worst, instead_of=lesser)
    four.work(lambda: None)
    assert posted == [("firing", worst.id), ("resolved", "investigate")]


def test_a_window_without_failures_has_a_share_of_zero(tmp_path: Path) -> None:
    """Of a server that tells how an answer ended only where it failed."""
    lines = [{"ts": 1.8e9 + at, "n_in": 5, **({"error": "x"} if at % 300 == 0 else {})} for at in range(1000)]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)))
    base = watch_init(log, tmp_path / "base.json", config=CONFIG)
    assert base.reference.ended == 4 and read_baseline(tmp_path / "base.json").reference.ended == 4
    (errors,) = [each for each in base.signals if each.name == "errors"]
    assert errors.null is not None and errors.null.windows == 20 and errors.null.typical == 0
    log.write_text("\n".join(json.dumps(each) for each in lines[1:51]))
    result = watch_run([log], tmp_path / "base.json", tmp_path / "watch")
    assert result.data["last_window"]["signals"]["errors"]["value"] == 0
    log.write_text("\n".join(json.dumps({"ts": 1.8e9 + at, "n_in": 5}) for at in range(1000)))
    silent = watch_init(log, tmp_path / "silent.json", config=CONFIG)
    assert next(each for each in silent.signals if each.name == "errors").is_off


def test_failures_of_a_log_of_statuses(tmp_path: Path) -> None:
    """A gateway's log, of times and statuses alone: failures and latency are watched, ends of answers are not known."""

    def lines(count: int, every: int) -> str:
        made = [
            {"ts": 1.8e9 + 60 * at, "status": 502 if at % every == 0 else 200, "latency_s": 1 + at % 7 / 10}
            for at in range(count)
        ]
        return "".join(json.dumps({"id": f"{every}-{at}", **each}) + "\n" for at, each in enumerate(made))

    log, base = tmp_path / "log.jsonl", tmp_path / "base.json"
    log.write_text(lines(3000, 100))
    on = {each.name: each for each in watch_init(log, base, config=CONFIG).signals if not each.is_off}
    assert on.keys() == {"errors", "latency"}
    assert on["errors"].null is not None and on["errors"].null.windows == 60
    figures = [each["signals"]["errors"]["value"] for each in _history_of(log, base, tmp_path / "same")]
    assert figures[:4] == [0.02, 0, 0.02, 0]
    log.write_text(lines(500, 5))
    result = watch_run([log], base, tmp_path / "worse")
    assert result.verdict == "investigate" and result.data["last_window"]["signals"]["errors"]["value"] == 0.2


def _history_of(log: Path, base: Path, folder: Path) -> list[dict[str, Any]]:
    assert watch_run([log], base, folder).verdict == "ok"
    return history(folder)


class Loss:
    """A signal of a model that is not there: a figure that requests carry."""

    name, kind, title, transform = "shadow_kl", "quality", "KL", "none"

    def reference(self, requests: Any) -> dict[str, Any]:
        return {"seen": len(requests)}

    def score(self, window: Any, state: dict[str, Any]) -> Scored:
        assert 400 <= state["seen"] <= 512 and 0 < len(window) <= 64
        return Scored(sum(each.logprob_mean for each in window) / len(window))


def test_signals_of_models_take_part(tmp_path: Path) -> None:
    def log(name: str, count: int, seed: int, extra: float, kind: str) -> Path:
        draw = rows(count, seed, kind=kind)
        lines = [json.dumps({**row, "logprob_mean": -1 - (at % 7) / 10 + extra}) for at, row in enumerate(draw)]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    signal: Any = Loss()
    base = watch_init(log("a", 2500, 1, 0, "healthy"), tmp_path / "base.json", config=CONFIG, signals=[signal])
    assert next(each for each in base.signals if each.name == "shadow_kl").decides
    worse = log("b", 800, 2, 0.5, "domain")
    result = watch_run([worse], tmp_path / "base.json", tmp_path / "watch", signals=lambda baseline: [signal])
    assert result.verdict == "re-prune"
    without = watch_run([worse], tmp_path / "base.json", tmp_path / "other")
    assert without.verdict == "notice"
    assert without.data["last_window"]["signals"]["shadow_kl"]["reason"] == "its model was not given to this run"
    # The model gets worse, then prompts change: the cause is told, and no receiver hears that all is over.
    prompts = [*rows(500, 3), *rows(500, 4, kind="domain")]
    (tmp_path / "c").write_text("\n".join(json.dumps({**row, "logprob_mean": -0.5}) for row in prompts))
    tell = TellConfig(webhook="http://127.0.0.1:9/hook")
    both = watch_run(
        [tmp_path / "c"],
        tmp_path / "base.json",
        tmp_path / "both",
        signals=lambda baseline: [signal],
        tell=tell,
        note=lambda words: None,
    )
    assert [each["verdict"] for each in both.data["changes"]] == ["investigate", "re-prune"]
    posts = json.loads((tmp_path / "both" / "state.json").read_text())["teller"]["posts"]
    assert [(each["verdict"], each["status"]) for each in posts] == [("investigate", "firing")]


class Fact:
    """Whether the weights are others: a signal of kind "weights"."""

    name, kind, title, transform = "other_weights", "weights", "weights", "none"

    def __init__(self, other: bool) -> None:
        self.other = other

    def reference(self, requests: Any) -> dict[str, Any]:
        return {}

    def score(self, window: Any, state: dict[str, Any]) -> Scored:
        return Scored(float(self.other))


class Filed(Loss):
    """A signal with a file, beside the baseline."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def score(self, window: Any, state: dict[str, Any]) -> Scored:
        assert not self.file.exists()
        return Scored(1.0)

    def keep(self) -> None:
        assert not self.file.with_name("base.json").exists()
        self.file.write_text("kept")


def test_files_of_signals_are_written_just_before_the_baseline(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 500, 1)
    signals: list[Any] = [Filed(tmp_path / "file"), Broken()]
    with pytest.raises(PrunekitError, match=r"secret\.host"):
        watch_init(log, tmp_path / "base.json", config=CONFIG, signals=signals)
    assert not signals[0].file.exists()
    watch_init(log, tmp_path / "base.json", config=CONFIG, signals=signals[:1])
    assert signals[0].file.read_text() == "kept"


class Broken(Loss):
    """Its model can't be had."""

    def score(self, window: Any, state: dict[str, Any]) -> Scored:
        raise PrunekitError("The server at secret.host did not answer.")


def test_other_weights_are_a_fact_and_a_signal_that_fails_stops_nothing(tmp_path: Path) -> None:
    """Of nine windows of a reference: too few for statistics, enough for a fact."""
    signals: list[Any] = [Fact(False), Loss()]
    draw = rows(550, 1)
    log = tmp_path / "reference.jsonl"
    log.write_text("\n".join(json.dumps({**row, "logprob_mean": -1 - (at % 7) / 10}) for at, row in enumerate(draw)))
    base = watch_init(log, tmp_path / "base.json", config=CONFIG, signals=signals)
    fact = next(each for each in base.signals if each.name == "other_weights")
    assert fact.decides and fact.h == 0.5 and fact.to_dict()["finds"]["windows"] == 1
    plain = watch_init(log, tmp_path / "plain.json", config=CONFIG, signals=[Loss()])  # type: ignore[list-item]
    assert [each.h for each in base.signals if each.name != "other_weights"] == [each.h for each in plain.signals]
    assert not any(each.decides for each in base.signals if each.name != "other_weights")

    notes: list[str] = []
    short = write_log(tmp_path / "short.jsonl", 100, 2)
    result = watch_run(
        [short],
        tmp_path / "base.json",
        tmp_path / "watch",
        signals=lambda baseline: [Fact(True), Broken()],  # type: ignore[list-item]
        note=notes.append,
    )
    assert result.verdict == "investigate" and result.data["windows"] == 2
    assert history(tmp_path / "watch")[0]["verdict"] == "investigate"
    assert result.data["last_window"]["signals"]["shadow_kl"]["reason"] == "it could not be scored in this window"
    assert sum("secret.host" in each for each in notes) == 1
    assert all("secret.host" not in file.read_text() for file in (tmp_path / "watch").iterdir())
    with pytest.raises(PrunekitError, match=r"secret\.host"):
        watch_init(log, tmp_path / "other.json", config=CONFIG, signals=[Broken()])  # type: ignore[list-item]


def refuse(words: str, call: Any) -> None:
    with pytest.raises(PrunekitError, match=words):
        call()


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
    call = [sys.executable, "-m", "prunekit", "watch", "run", str(log), "--baseline", str(made[0]), "--json", "-q"]
    done = subprocess.run(
        [*call, "--once", "-o", str(tmp_path / "w")], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["verdict"] == "investigate" and not done.stderr
    call.remove("--json")
    done = subprocess.run(
        [*call, "--once", "-o", str(tmp_path / "w")], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert b"The newest request came at 2025-10-09T17:" in done.stdout, done.stdout


def test_following_reads_what_comes(made: tuple[Path, Baseline], tmp_path: Path) -> None:
    data = write_log(tmp_path / "whole.jsonl", 400, 3).read_bytes()
    log = tmp_path / "log.jsonl"
    log.write_bytes(data[: len(data) // 2])
    # Where tests run in the background, their children are born deaf to Ctrl-C.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'prunekit'; "
        "from prunekit.cli import main; main()"
    )
    call = [sys.executable, "-c", code, "watch", "run", str(log), "--baseline", str(made[0]), "--every", "0.1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*call, "-o", str(tmp_path / "w")], env=env, stderr=subprocess.PIPE) as process:
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
