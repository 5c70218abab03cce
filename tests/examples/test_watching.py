"""The watch as the examples set it up: cron's line is run, and Prometheus' rules are tried by its own program."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.monitoring.alarms import prometheus
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.running.models import signals_of
from tests.support.command import ROOT, save_tiny
from tests.support.request_logs import write_log

OPERATE = ROOT / "examples" / "operate"
PROMTOOL = os.environ.get("PRUNEKIT_PROMTOOL") or shutil.which("promtool")


def crontab() -> tuple[dict[str, str], str]:
    """The variables, and the command that watches."""
    lines = (OPERATE / "crontab").read_text().splitlines()
    named = dict(line.split("=", 1) for line in lines if "=" in line.split(" ", 1)[0] and line[:1].isupper())
    (found,) = [line for line in lines if " watch run " in line]
    *schedule, command = found.split(maxsplit=5)
    # A % is a line end to cron.
    assert len(schedule) == 5 and "%" not in command and "%" not in "".join(named.values())
    return named, command


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("flock") is None, reason="the line needs flock")
def test_cron_tells_of_an_alarm_once_and_prints_nothing(tmp_path: Path) -> None:
    named, command = crontab()
    assert shlex.split(named["ON_ALARM"])[0] == "mail"
    releases = tmp_path / "srv" / "prunekit"
    for folder in (releases, tmp_path / "srv" / "requests", tmp_path / "var" / "lib" / "node_exporter"):
        folder.mkdir(parents=True)
    save_tiny(tmp_path / "dense", layers=2, max_position_embeddings=512)
    save_tiny(releases / "1" / "checkpoint", layers=2, max_position_embeddings=512)
    (releases / "current").symlink_to("1")
    models = str(releases / "current" / "checkpoint"), str(tmp_path / "dense")
    base = releases / "current" / "base.json"
    log = write_log(tmp_path / "reference.jsonl", 2400, 1)
    watch_init(
        log,
        base,
        config=WatchConfig(window=50),
        signals=signals_of(*models, base, window=50, device="cpu"),
        models=dict(zip(("model", "dense"), models, strict=True)),
    )
    write_log(tmp_path / "srv" / "requests" / "requests.jsonl", 250, 2, kind="broken")

    program = tmp_path / "bin" / "prunekit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m prunekit "$@"\n')
    program.chmod(0o755)
    for name in ("/srv/", "/var/"):
        assert name in command
        command = command.replace(f" {name}", f" {tmp_path}{name}")
    variables = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RELEASES": str(releases),
        "MODEL": models[1],
        "ON_ALARM": f"tee -a {tmp_path}/told",
    }
    for _ in range(2):
        done = subprocess.run(["sh", "-c", command], cwd="/", env=variables, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    (told,) = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert told["verdict"] == "investigate"
    assert (releases / "1" / "watch").is_dir()
    figures = (tmp_path / "var" / "lib" / "node_exporter" / "prunekit.prom").read_text()
    assert "prunekit_watch_alarm 1\n" in figures and 'signal_value{signal="shadow_kl"}' in figures
    # A new release is not watched before it has a baseline, and nobody is mailed about that.
    base.unlink()
    done = subprocess.run(["sh", "-c", command], cwd="/", env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


RULES = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - name: all is well
    interval: 1m
    input_series: &well
      - {{series: 'prunekit_watch_alarm{{instance="a"}}', values: '0x600'}}
      - {{series: 'prunekit_watch_verdict{{instance="a",verdict="fall back to dense now"}}', values: '0x600'}}
      - {{series: 'prunekit_watch_blind{{instance="a"}}', values: '0x600'}}
      - {{series: 'prunekit_watch_telling_failures_total{{instance="a"}}', values: '3x600'}}
      - {{series: 'prunekit_watch_last_request_timestamp_seconds{{instance="a"}}', values: '0+60x600'}}
      - {{series: 'node_textfile_mtime_seconds{{instance="a",file="/x/prunekit.prom"}}', values: '0+60x600'}}
    alert_rule_test:
{none}
  - name: all is wrong
    interval: 1m
    input_series:
      - {{series: 'prunekit_watch_alarm{{instance="a"}}', values: '0x10 1x600'}}
      - {{series: 'prunekit_watch_verdict{{instance="a",verdict="fall back to dense now"}}', values: '0x600'}}
      - {{series: 'prunekit_watch_alarm{{instance="b"}}', values: '1x600'}}
      - {{series: 'prunekit_watch_verdict{{instance="b",verdict="fall back to dense now"}}', values: '1x600'}}
      - {{series: 'prunekit_watch_blind{{instance="a"}}', values: '1x600'}}
      - {{series: 'prunekit_watch_telling_failures_total{{instance="a"}}', values: '3x300 4x300'}}
      - {{series: 'prunekit_watch_last_request_timestamp_seconds{{instance="a"}}', values: '0x600'}}
      - {{series: 'node_textfile_mtime_seconds{{instance="a",file="/x/prunekit.prom"}}', values: '0x600'}}
    alert_rule_test:
{all}
  - name: nothing is there
    interval: 1m
    input_series: []
    alert_rule_test:
{absent}
"""


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_prometheus_fires_the_rules(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    assert PROMTOOL is not None
    rules = OPERATE / "prometheus-rules.yaml"
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    labels = {each["alert"]: each["labels"] for each in group["rules"]}
    words = {each["alert"]: each["annotations"]["summary"] for each in group["rules"]}

    def tests(fired: dict[str, dict[str, str]]) -> str:
        made = []
        for name in labels:
            found = [
                {"exp_labels": {**labels[name], **more}, "exp_annotations": {"summary": words[name]}}
                for more in [fired.get(name)]
                if more is not None
            ]
            made.append(f"      - {json.dumps({'eval_time': '9h', 'alertname': name, 'exp_alerts': found})}")
        return "\n".join(made)

    a, file = {"instance": "a"}, {"instance": "a", "file": "/x/prunekit.prom"}
    every = {
        "PrunekitWatchAlarm": a,
        "PrunekitFallBackToDense": {"instance": "b", "verdict": "fall back to dense now"},
        "PrunekitWatchIsBlind": a,
        "PrunekitNoRequests": a,
        "PrunekitWatchIsSilent": file,
        "PrunekitWatchCannotTell": a,
    }
    assert every.keys() == labels.keys()
    absent: dict[str, dict[str, str]] = {"PrunekitNoRequests": {}, "PrunekitWatchIsSilent": {}}
    text = RULES.format(rules=json.dumps(str(rules)), none=tests({}), all=tests(every), absent=tests(absent))
    (tmp_path / "tests.yaml").write_text(text)
    done = subprocess.run([PROMTOOL, "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_name_metrics_that_are_written() -> None:
    import re

    text = (OPERATE / "prometheus-rules.yaml").read_text()
    named = set(re.findall(r"prunekit_watch_(\w+)", text))
    assert named <= set(prometheus._HELP) and {"alarm", "blind", "last_request_timestamp_seconds"} <= named
