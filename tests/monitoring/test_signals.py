"""Signals that take part in a watch, and those that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import read_baseline
from prunekit.monitoring.running.run import TellConfig, watch_run
from prunekit.monitoring.signals.protocol import Scored
from tests.support.request_logs import history, rows, write_log

CONFIG = WatchConfig(window=50)


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


def test_first_tokens_and_edits(tmp_path: Path) -> None:
    """A first token that is later is the server's affair; answers that people change more are the model's."""

    def lines(count: int, name: str, ttft: float = 100, edited: float = 0.1) -> str:
        rows = (
            {
                "id": f"{name}-{at}",
                "ts": 1.8e9 + 60 * at,
                "n_in": 5,
                "latency_ms": 900 + 10 * (at % 7),
                "ttft_ms": ttft + at % 11,
                "outcome": "edited",
                "edit_distance": edited + at % 5 / 100,
            }
            for at in range(count)
        )
        return "".join(json.dumps(each) + "\n" for each in rows)

    log, base = tmp_path / "log.jsonl", tmp_path / "base.json"
    log.write_text(lines(4000, "reference"))
    on = {each.name for each in watch_init(log, base, config=CONFIG).signals if not each.is_off}
    assert {"latency", "ttft", "edit_distance"} <= on
    log.write_text(lines(500, "same"))
    assert watch_run([log], base, tmp_path / "same").verdict == "ok"
    log.write_text(lines(500, "late", ttft=200))
    late = watch_run([log], base, tmp_path / "late")
    assert late.verdict == "notice" and [each.split(":")[0] for each in late.data["reasons"]] == ["ttft"]
    log.write_text(lines(500, "edits", edited=0.3))
    edits = watch_run([log], base, tmp_path / "edits")
    assert edits.verdict == "investigate" and [each.split(":")[0] for each in edits.data["reasons"]] == [
        "edit_distance"
    ]


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
