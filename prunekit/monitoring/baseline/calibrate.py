"""From a reference log to what is normal: each kept window scored against the rest, and the limit of each signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.signals.plain import PLAIN, Plain
from prunekit.monitoring.signals.protocol import ModelSignal, Scored
from prunekit.monitoring.signals.reference import Gathered, Reference
from prunekit.monitoring.statistics.cusum import detectable, false_rate, limit, run_length
from prunekit.monitoring.statistics.null import LEAST, Null, fit

# The pairs of windows that models score: more cost minutes and tell little.
_MODEL_WINDOWS = 64
# The sustained shift is told that is found after so many windows.
FOUND_AFTER = 10
# Other weights are a fact, not a deviation: one window is enough.
_FACT = 0.5
_NO_CHANCE = 1e-6
DAYS = 365.25


@dataclass(frozen=True)
class Calibrated:
    """A signal of a baseline: its ``null`` and limit ``h``, or the ``reason`` why it is off. ``state`` is what a signal
    of a model keeps of the reference. ``looked`` counts windows of the reference that could have had a figure."""

    name: str
    kind: str
    title: str
    null: Null | None
    h: float | None
    reason: str | None = None
    state: dict[str, Any] | None = None
    looked: int | None = None

    @property
    def is_off(self) -> bool:
        """Whether nothing is known of it."""
        return self.null is None

    @property
    def decides(self) -> bool:
        """Whether it may give an alarm, and not only a notice. Other weights are a fact: it needs no statistics."""
        return self.null is not None and (self.kind == "weights" or self.null.calibrated)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only, with what the set-up can find."""
        made: dict[str, Any] = {"name": self.name, "kind": self.kind, "title": self.title, "reason": self.reason}
        made["status"] = "off" if self.is_off else "calibrated" if self.decides else "uncalibrated: warns only"
        made["null"] = None if self.null is None else self.null.to_dict()
        made["limit"] = self.h
        made["finds"] = None if self.null is None or self.h is None else _found(self.kind, self.null, self.h)
        made["state"] = self.state
        made["looked"] = self.looked
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibrated:
        """The counterpart of :meth:`to_dict`."""
        null = None if data["null"] is None else Null(**data["null"])
        return cls(
            data["name"],
            data["kind"],
            data["title"],
            null,
            data["limit"],
            data["reason"],
            data["state"],
            data.get("looked"),
        )

    @property
    def silent_after(self) -> int:
        """So many windows without a figure, one after the other, are no chance: as rare as one in a million, by how
        often the reference had none (Laplace's rule)."""
        assert self.null is not None
        looked = max(self.looked or 0, self.null.windows)
        missing = (looked - self.null.windows + 1) / (looked + 2)
        return math.ceil(math.log(_NO_CHANCE) / math.log(missing))


def _found(kind: str, null: Null, h: float) -> dict[str, Any]:
    if kind == "weights":
        return {"status": "certain", "windows": 1, "shift_sd": None, "from": 0.0, "to": 1.0, "windows_at_1_sd": None}
    return finds(null, h)


def finds(null: Null, h: float) -> dict[str, Any]:
    """What a signal with this limit finds, by Siegmund's formula: predicted, not measured."""
    shift = detectable(h, FOUND_AFTER)
    return {
        "status": "predicted",
        "windows": FOUND_AFTER,
        "shift_sd": shift,
        "from": null.typical,
        "to": null.at(shift),
        "windows_at_1_sd": run_length(h, 1.0),
    }


def calibrate(
    gathered: Gathered,
    reference: Reference,
    config: WatchConfig,
    per_day: float,
    models: Sequence[ModelSignal] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Calibrated, ...]:
    """All signals with their limits: the false alarms a year are split over those that are on, but for those of kind
    "weights", which tell a fact."""
    fitted: list[tuple[Any, Null | None, str | None, dict[str, Any] | None, int]] = []
    for signal in PLAIN:
        null, reason = _fit_plain(signal, gathered, reference)
        fitted.append((signal, null, reason, None, len(gathered.kept)))
    for each in models:
        state = each.reference(gathered.sampled)
        null, reason = _fit_model(each, state, gathered, advance)
        fitted.append((each, null, reason, state, model_windows(gathered)))
    on = sum(null is not None and each.kind != "weights" for each, null, *_ in fitted)
    between = per_day * DAYS / config.window * max(on, 1) / config.false_alarms
    return tuple(
        Calibrated(
            each.name,
            each.kind,
            each.title,
            null,
            None if null is None else _limit(each.kind, between, null),
            reason,
            state,
            looked,
        )
        for each, null, reason, state, looked in fitted
    )


def alarms_a_year(signals: Sequence[Calibrated], config: WatchConfig, per_day: float) -> float:
    """The false alarms a year that all limits together give: more than was asked for where one is as high as can be."""
    rates = [
        false_rate(each.h, each.null.effective)
        for each in signals
        if each.null is not None and each.h is not None and each.kind != "weights"
    ]
    return sum(rates) * per_day * DAYS / config.window


def _limit(kind: str, between: float, null: Null) -> float:
    """The limit of a signal that may give one false alarm in so many windows as lie ``between`` two."""
    return _FACT if kind == "weights" else limit(max(between, 2.0), null.effective)


def _fit_plain(signal: Plain, gathered: Gathered, reference: Reference) -> tuple[Null | None, str | None]:
    places, values, trials, reason = [], [], [], None
    for at, (window, _) in sorted(gathered.kept.items()):
        scored = signal.figure(window, reference.without(window) if signal.compares else reference)
        if scored.value is None:
            reason = scored.reason
            continue
        places.append(at)
        values.append(scored.value)
        trials.append(float(signal.trials(window)) if signal.trials else 0.0)
    pairs = list(gathered.neighbours(places))
    null = fit(values, signal.transform, trials=trials if signal.trials else None, pairs=pairs, floor=signal.floor)
    return null, None if null is not None else _why_off(len(values), reason)


def _fit_model(
    signal: ModelSignal, state: dict[str, Any], gathered: Gathered, advance: Callable[[int], None]
) -> tuple[Null | None, str | None]:
    places = _spread(sorted(gathered.kept))
    scored: dict[int, Scored] = {}
    for at in places:
        scored[at] = signal.score(gathered.kept[at][1], state)
        advance(1)
    figures = {at: each.value for at, each in scored.items() if each.value is not None and math.isfinite(each.value)}
    found, values = list(figures), list(figures.values())
    null = fit(values, signal.transform, pairs=list(gathered.neighbours(found)))
    reasons = [each.reason for each in scored.values() if each.reason]
    return null, None if null is not None else _why_off(len(values), reasons[-1] if reasons else None)


def _spread(places: list[int]) -> list[int]:
    """At most _MODEL_WINDOWS of the places, in pairs that follow each other, from all over the log."""
    pairs = sorted({at // 2 for at in places})
    step = max(1, -(-2 * len(pairs) // _MODEL_WINDOWS))
    wanted = set(pairs[::step])
    return [at for at in places if at // 2 in wanted]


def model_windows(gathered: Gathered) -> int:
    """How many windows of the reference each signal of a model scores."""
    return len(_spread(sorted(gathered.kept)))


def _why_off(found: int, reason: str | None) -> str:
    if not found:
        return reason or "no window has a figure"
    return f"only {found} windows of the reference have a figure, and {LEAST} are needed"
