"""What a watch tells, to whom, and how often."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from prunekit.errors import PrunekitError
from prunekit.monitoring.alarms.command import Command
from prunekit.monitoring.alarms.prometheus import escaped
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.running.run import TellConfig, watch_run
from prunekit.monitoring.running.teller import Teller
from tests.support.request_logs import history, refuse, write_log


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
