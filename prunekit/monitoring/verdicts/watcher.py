"""The running state of a watch: one CUSUM a signal, the wealth against each bound, the verdict after each window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.baseline.calibrate import Calibrated
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.signals.plain import PLAIN, Plain
from prunekit.monitoring.signals.protocol import ModelSignal, Scored
from prunekit.monitoring.signals.window import Figures
from prunekit.monitoring.statistics.betting import Wealth
from prunekit.monitoring.statistics.cusum import Cusum
from prunekit.monitoring.verdicts.rule import Judged, Up, judge

_PLAIN = {each.name: each for each in PLAIN}
_NOT_GIVEN = "its model was not given to this run"


class Watcher:
    """Judges window after window against a baseline. ``models`` are the signals that need models and are at hand;
    ``note`` is told why one of them could not score a window."""

    def __init__(
        self,
        baseline: Baseline,
        models: Sequence[ModelSignal] = (),
        state: dict[str, Any] | None = None,
        note: Callable[[str], None] = lambda words: None,
    ) -> None:
        state = state or {}
        self._baseline = baseline
        self._models = {each.name: each for each in models}
        self._note, self._noted = note, ""
        self.windows: int = state.get("windows", 0)
        self.requests: int = state.get("requests", 0)
        # Signals of answers that were up while prompts were as before: an alarm must not end because prompts change.
        self.alone = set(state.get("alone", []))
        # Windows without a figure, one after the other, by signals.
        self.silent: dict[str, int] = dict(state.get("silent", {}))
        self.sums = {name: Cusum(**each) for name, each in state.get("sums", {}).items()}
        self.wealth = {name: Wealth(**each) for name, each in state.get("wealth", {}).items()}
        for name, told in baseline.bounds.items():
            if told["bound"] is not None and name not in self.wealth:
                self.wealth[name] = Wealth(told["bound"], baseline.config.alpha)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: what another Watcher goes on from."""
        return {
            "windows": self.windows,
            "requests": self.requests,
            "alone": sorted(self.alone),
            "silent": dict(self.silent),
            "sums": {name: asdict(each) for name, each in self.sums.items()},
            "wealth": {name: each.to_dict() for name, each in self.wealth.items()},
        }

    @staticmethod
    def begun_anew(state: dict[str, Any]) -> dict[str, Any]:
        """Of a state what stays when all sums begin anew: the numbers of windows, by which alarms are named."""
        return {name: state[name] for name in ("windows", "requests") if name in state}

    def judge(
        self, window: Figures, sampled: Sequence[Request], blind: Sequence[str] = ()
    ) -> tuple[Judged, dict[str, Any]]:
        """The verdict after one more window, and the window's row of the history. ``blind`` says what is known already
        of what the log does not tell any more."""
        self.windows += 1
        self.requests += window.counts.requests
        rows: dict[str, dict[str, Any]] = {}
        up: list[Up] = []
        for signal in self._baseline.signals:
            rows[signal.name] = self._judge_signal(signal, window, sampled, up)
        over = self._judge_outcomes(window)
        blind = [*blind, *self._silent_signals(rows, window.counts.requests)]
        verdict = judge(self._with_alone(up), over, blind)
        row = {
            "window": self.windows,
            "requests": self.requests,
            "first": window.counts.first,
            "last": window.counts.last,
            "verdict": verdict.verdict,
            "reasons": list(verdict.reasons),
            "do": verdict.do,
            "blind": blind,
            "signals": rows,
            "outcomes": self._outcomes(window),
        }
        return verdict, row

    def _silent_signals(self, rows: dict[str, dict[str, Any]], requests: int) -> list[str]:
        """A sentence for each signal that should have a figure and has none for too long. One whose model was not named
        is off by the user's will. A window of outcomes alone tells nothing of this."""
        made = []
        one = int(requests >= self._baseline.config.window)
        for signal in self._baseline.signals:
            row = rows[signal.name]
            if signal.is_off or row["value"] is not None or row.get("reason") == _NOT_GIVEN:
                self.silent.pop(signal.name, None)
                continue
            count = self.silent[signal.name] = self.silent.get(signal.name, 0) + one
            if count >= signal.silent_after:
                made.append(f"{signal.name}: no figure in the last {count:,} windows: {row['reason']}.")
        return made

    def _with_alone(self, up: Sequence[Up]) -> list[Up]:
        other_prompts = any(each.kind == "input" and each.decides for each in up)
        answers = {each.name for each in up if each.kind == "output"}
        self.alone = answers & self.alone if other_prompts else answers
        return [replace(each, alone=each.name in self.alone) for each in up]

    def _judge_signal(
        self, signal: Calibrated, window: Figures, sampled: Sequence[Request], up: list[Up]
    ) -> dict[str, Any]:
        if signal.null is None or signal.h is None:
            return {"value": None, "reason": signal.reason}
        plain = _PLAIN.get(signal.name)
        scored = self._score(signal, plain, window, sampled)
        before = self.sums.get(signal.name, Cusum())
        row: dict[str, Any] = {"value": scored.value, **({"details": scored.details} if scored.details else {})}
        after = before
        if scored.value is None:
            row["reason"] = scored.reason
        else:
            trials = float(plain.trials(window)) if plain is not None and plain.trials else None
            row["z"] = signal.null.z(scored.value, trials)
            after = self.sums[signal.name] = before.after(row["z"], signal.h)
        row |= {"sum": after.s, "limit": signal.h, "active": after.active}
        if after.active:
            # A baseline of before may tell another kind.
            known = plain or self._models.get(signal.name)
            kind = signal.kind if known is None else known.kind
            up.append(Up(signal.name, kind, signal.decides, _sentence(signal, scored, after)))
        return row

    def _score(self, signal: Calibrated, plain: Plain | None, window: Figures, sampled: Sequence[Request]) -> Scored:
        if plain is not None:
            return plain.figure(window, self._baseline.reference)
        model = self._models.get(signal.name)
        if model is None:
            return Scored(None, _NOT_GIVEN)
        if not sampled:
            return Scored(None, "no requests in the window")
        try:
            scored = model.score(sampled, signal.state or {})
        except PrunekitError as error:  # a server that is away must not hide what else a window shows
            self._tell(str(error))
            return Scored(None, "it could not be scored in this window")
        if scored.value is not None and not math.isfinite(scored.value):
            return Scored(None, "its figure is no finite number")
        return scored

    def _tell(self, words: str) -> None:
        """Once for all signals and windows that fail alike. Words of an error may name a host: never in the history."""
        if words != self._noted:
            self._noted = words
            self._note(f"window {self.windows}: a signal of a model could not be scored: {words}")

    def _judge_outcomes(self, window: Figures) -> list[str]:
        told = window.counts.outcomes
        for name, place in (("error", 0), ("rework", 1)):
            if name in self.wealth:
                self.wealth[name].add(each[place] for each in told)
        return [
            f"The share of {self._baseline.bounds[name]['what']} is above {each.bound:.2%} "
            f"({each.bad:,} of {each.seen:,} so far); the chance that this is wrong is at most {each.alpha:.0%}, ever."
            for name, each in self.wealth.items()
            if each.alarm
        ]

    def _outcomes(self, window: Figures) -> dict[str, Any]:
        told = window.counts.outcomes
        return {
            "told": len(told),
            "wrong": sum(each[0] for each in told),
            "reworked": sum(each[1] for each in told),
            "critical_wrong": window.counts.critical_wrong,
            "wealth": {name: each.wealth for name, each in self.wealth.items()},
        }


def _sentence(signal: Calibrated, scored: Scored, after: Cusum) -> str:
    assert signal.null is not None
    now = "not told in this window" if scored.value is None else f"{scored.value:.4g} in this window"
    return (
        f"{signal.name}: {signal.title} is up: {now}, {signal.null.typical:.4g} in the reference; the sum of "
        f"deviations is {after.s:.1f}, its limit {signal.h:.1f}."
    )
