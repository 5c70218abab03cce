"""One run of a watch: windows to verdicts, verdicts to alarms, and the summary of both."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from prunekit.monitoring.alarms.alarm import Alarm, alarm_of
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.running.source import Source
from prunekit.monitoring.running.teller import Teller
from prunekit.monitoring.signals.window import Figures
from prunekit.monitoring.verdicts.rule import BLIND, DO
from prunekit.monitoring.verdicts.watcher import Watcher
from prunekit.utils.provenance import versions

# Verdicts that changed, and windows, of which the summary tells.
_MOST_CHANGES, _MOST_WINDOWS = 200, 500


class Session:
    """Judges windows with ``watcher`` and tells of alarms with ``teller``, on from ``state``. ``release`` is the
    SHA-256 of the baseline: alarms of other models and releases have other names."""

    def __init__(
        self,
        baseline: Baseline,
        watcher: Watcher,
        teller: Teller,
        source: Source,
        state: dict[str, Any],
        release: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._release = release[:12]
        self.baseline, self.watcher, self.teller, self.source, self._now = baseline, watcher, teller, source, now
        told = state.get("alarm")
        self._alarm = None if told is None else alarm_of(told)
        self._alarms: int = state.get("alarms", 0)
        self.verdict: str = state.get("verdict", "ok")
        self._last: dict[str, Any] | None = state.get("last")
        self._changes: deque[dict[str, Any]] = deque(state.get("changes", []), _MOST_CHANGES)
        self._recent: deque[dict[str, Any]] = deque(state.get("recent", []), _MOST_WINDOWS)
        self.alarmed = self._alarm is not None
        # Lines of this run, and those of no use, when the last window was closed.
        self._lines = self._empty = 0

    def to_state(self) -> dict[str, Any]:
        """JSON values only: all that the next run goes on from, as of the last window."""
        return {
            "watcher": self.watcher.to_dict(),
            "marks": {name: each.to_dict() for name, each in self.source.marks().items()},
            "seen": self.source.seen.to_list(),
            "session": {
                "alarm": None if self._alarm is None else asdict(self._alarm),
                "alarms": self._alarms,
                "verdict": self.verdict,
                "last": self._last,
                "changes": list(self._changes),
                "recent": list(self._recent),
            },
        }

    def judge(self, window: Figures, sampled: Sequence[Request]) -> tuple[dict[str, Any], bool]:
        """The row of one more window, and whether the verdict changed with it."""
        judged, row = self.watcher.judge(window, sampled, self._lost_lines())
        self._lines, self._empty = self.source.problems.lines, self.source.problems.empty
        changed = judged.verdict != self.verdict
        if changed:
            self._changes.append({name: row[name] for name in ("window", "requests", "last", "verdict", "reasons")})
            before = self._alarm
            if not judged.alarm:
                self._end_alarm()
            else:
                self._alarms += 1
                self._alarm = Alarm(
                    f"{judged.verdict.split()[0]}-{row['window']:08d}-{self._release}",
                    judged.verdict,
                    judged.reasons,
                    judged.do,
                    row["window"],
                    row["requests"],
                    self._now(),
                )
                self.teller.begin(self._alarm, instead_of=before)
                self.alarmed = True
        self.verdict, self._last = judged.verdict, row
        self._recent.append(_short(row))
        return row, changed

    def reset(self) -> None:
        """All is as it should be from here on, as after a repair: an open alarm ends. Numbers of windows go on."""
        self._end_alarm()
        if self.verdict != "ok":
            reasons = ["The watch began anew (--reset)."]
            told = {"window": self.watcher.windows, "requests": self.watcher.requests, "last": None}
            self._changes.append({**told, "verdict": "ok", "reasons": reasons})
        self.verdict, self._last, self.alarmed = "ok", None, False

    def _lost_lines(self) -> list[str]:
        """A sentence where most lines since the last window are of no use, and those of the reference were not: more
        than a window's requests, and more than twice what came with as many requests of the reference."""
        problems, log, window = self.source.problems, self.baseline.log, self.baseline.config.window
        lines, empty = problems.lines - self._lines, problems.empty - self._empty
        requests = max(1, log.get("requests") or 1)
        usual = log.get("empty", max(0, (log.get("lines") or 0) - requests)) / requests
        if empty <= window * (1 + 2 * usual):
            return []
        return [
            f"Of the last {lines:,} lines of the log {empty:,} hold no request that can be read, and of the "
            f"reference's {usual / (1 + usual):.0%}."
        ]

    def _newest(self) -> float | None:
        """When the newest request came, seconds since 1970, as far as was read."""
        times = [self.source.newest, None if self._last is None else self._last.get("last")]
        return max((each for each in times if each is not None), default=None)

    def _end_alarm(self) -> None:
        if self._alarm is not None:
            self.teller.end(Alarm(**{**asdict(self._alarm), "ended": self._now()}))
            self._alarm = None

    def summary(self) -> dict[str, Any]:
        """What watch.json holds: the verdict, what led to it, and the figures of the last windows."""
        base = self.baseline
        last = self._last or {}
        verdict, do = self.verdict, last.get("do", DO.get(self.verdict, ""))
        reasons = last.get("reasons", ["No whole window was read yet."])
        # What holds since the last window stands in no row of the history.
        if lost := self._lost_lines():
            reasons = [*(reasons if self._last is None or verdict != "ok" else []), *lost]
            if verdict == "ok":
                verdict, do = "notice", BLIND
        return {
            "verdict": verdict,
            "reasons": reasons,
            "do": do,
            "blind": [*last.get("blind", []), *lost],
            "last_request": self._newest(),
            "alarm": None if self._alarm is None else self._alarm.to_dict(),
            "windows": self.watcher.windows,
            "requests": self.watcher.requests,
            "alarms": self._alarms,
            "alarms_held_back": self.teller.held_back,
            "telling_failures": self.teller.failures,
            "log": self.source.problems.to_dict(),
            "last_window": self._last,
            "changes": list(self._changes),
            "recent": list(self._recent),
            "outcomes": {
                name: {
                    "what": told["what"],
                    "bound": told["bound"],
                    "how": told["how"],
                    "reference": told["reference"],
                    "seen": self.watcher.wealth[name].seen if name in self.watcher.wealth else 0,
                    "bad": self.watcher.wealth[name].bad if name in self.watcher.wealth else 0,
                }
                for name, told in base.bounds.items()
            },
            "signals": [
                {key: value for key, value in each.to_dict().items() if key != "state"} for each in base.signals
            ],
            "config": asdict(base.config),
            "requests_per_day": base.per_day,
            "models": base.models,
            "baseline_log": {key: base.log.get(key) for key in ("requests", "windows", "first", "last")},
            "versions": versions(),
        }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """What a picture needs of a window."""
    return {
        "window": row["window"],
        "last": row["last"],
        "verdict": row["verdict"],
        "values": {name: each.get("value") for name, each in row["signals"].items()},
        "sums": {name: each.get("sum") for name, each in row["signals"].items() if "sum" in each},
    }
