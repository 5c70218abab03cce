"""What ``prunekit watch run`` found in request logs: the verdict, the signals, scores beside the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prunekit.report.facts.claims import (
    CHECKPOINT,
    EXACT,
    MEASURED,
    WATCH,
    Claim,
    Figure,
    Proof,
    Reading,
    Subject,
)
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.judging import half_width
from prunekit.report.readers.operate.signals import watch_sheets
from prunekit.report.readers.operate.versions import bare, check_version, utc
from prunekit.report.readers.place import Place, version_words

KIND = "watch of request logs"
FORMAT = "prunekit-watch"
# Whether each speaks for the model.
VERDICTS: dict[str, bool | None] = {
    "ok": True,
    "notice": None,
    "re-prune": False,
    "investigate": False,
    "fall back to dense now": False,
}
_OUTCOMES = {"error": "rejected_share", "rework": "reworked_share"}


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == FORMAT


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is of another version or damaged."""
    check_version(data, "prunekit watch run")
    word = data.text("verdict")
    if word not in VERDICTS:
        raise data.wrong("verdict", f"one of {', '.join(VERDICTS)}")
    subject, dense = _subjects(data)
    windows = data.count("windows")
    began = _began(data)
    proof = Proof(
        subject,
        CHECKPOINT,
        WATCH,
        word if windows else "no whole window was read yet",
        VERDICTS[word] if windows else None,
        place.name,
        (*data.texts("reasons", 200), *([began] if began else [])),
        data.text("do", ""),
        tuple(watch_sheets(data)),
    )
    subjects = ((subject, CHECKPOINT),) if subject is not None else ()
    return Reading(
        KIND,
        subjects + (((dense, CHECKPOINT),) if dense is not None else ()),
        tuple(_claims(data, subject, place)) if subject is not None else (),
        facts=tuple(row for row in _facts(data) if row[1]),
        proofs=(proof,),
        not_measured=tuple(_lost(data, subject)),
        warnings=tuple(_warnings(data, word, subject, place)),
    )


def _subjects(data: Fields) -> tuple[Subject | None, Subject | None]:
    """The deployed model and the dense one, as far as the baseline names them."""
    models = data.object("models") if "models" in data else Fields({}, data.file, "models")
    deployed, dense = models.maybe_text("model"), models.maybe_text("dense")
    pair = dense is not None
    return (
        None if deployed is None else Subject(bare(deployed), False if pair else None),
        Subject(bare(dense), True) if dense is not None and deployed is not None else None,
    )


def _setup(data: Fields) -> str:
    window = data.object("config").count("window", 1)
    return f"watch of request logs, last window of {window:,} requests"


def _claims(data: Fields, subject: Subject, place: Place) -> Iterator[Claim]:
    setup = _setup(data)
    last = data.maybe_object("last_window")
    signals = None if last is None else last.object("signals")
    for name, metric in (("shadow_kl", "shadow_kl"), ("shadow_disagreement", "shadow_agreement")):
        said = None if signals is None else signals.maybe_object(name)
        value = None if said is None else said.maybe("value")
        if said is not None and value is not None:
            figure = _scored(value, said.maybe_object("details"), metric == "shadow_agreement", place)
            yield Claim(subject, CHECKPOINT, metric, figure, setup)
    outcomes = data.object("outcomes") if "outcomes" in data else None
    for name, metric in _OUTCOMES.items():
        told = None if outcomes is None else outcomes.maybe_object(name)
        seen = 0 if told is None else told.count("seen")
        if told is not None and seen:
            how = f"{told.count('bad'):,} of {seen:,} outcomes so far"
            share = min(1.0, told.count("bad") / seen)
            yield Claim(
                subject, CHECKPOINT, metric, Figure(share, MEASURED, how=how, files=(place.name,)), "request logs"
            )
    alarms = Figure(data.count("alarms"), EXACT, how="alarms so far", files=(place.name,))
    yield Claim(subject, CHECKPOINT, "alarms", alarms, "request logs")


def _scored(value: float, details: Fields | None, turned: bool, place: Place) -> Figure:
    """A window's mean, with the interval of its requests. ``turned``: one minus it is shown."""
    count = 0 if details is None else details.count("requests") if "requests" in details else 0
    half = None if details is None or not count else half_width(details.maybe("standard_error"), count)
    bound = (
        "; a lower bound: the server tells the likeliest tokens alone"
        if (details is not None and details.flag("lower_bound"))
        else ""
    )
    how = f"mean over {count:,} sampled requests, scored beside the dense model{bound}"
    shown = 1 - value if turned else value
    # Agreement is a share; a divergence is at least 0.
    most = 1.0 if turned else math.inf
    low, high = (None, None) if half is None else (max(0.0, shown - half), min(most, shown + half))
    return Figure(shown, MEASURED, low, high, how, (place.name,))


def _began(data: Fields) -> str:
    """Since when the alarm is active."""
    alarm = data.maybe_object("alarm")
    if alarm is None:
        return ""
    at = alarm.text("began", "")
    return f"The alarm is active since window {alarm.count('window'):,}, after {alarm.count('requests'):,} requests" + (
        f" (told {at})." if at else "."
    )


def _facts(data: Fields) -> Iterator[tuple[str, str]]:
    config = data.object("config")
    a_day = data.maybe("requests_per_day")
    yield (
        "watch",
        f"windows of {config.count('window'):,} requests, {config.number('false_alarms'):g} false alarms a year for "
        "all signals together" + (f", {a_day:,.0f} requests a day" if a_day else ""),
    )
    log = data.maybe_object("baseline_log")
    if log is not None and "requests" in log:
        times = " to ".join(filter(None, (utc(log, "first"), utc(log, "last"))))
        words = f"{log.count('requests'):,} requests in {log.count('windows'):,} windows"
        yield "reference of the watch", f"{words}, {times}" if times else words
    yield "watched", f"{data.count('requests'):,} requests in {data.count('windows'):,} windows"
    yield "versions of the watch", version_words(data.maybe_object("versions"))


def _lost(data: Fields, subject: Subject | None) -> Iterator[str]:
    """Signals that are off, or told nothing in the last window."""
    name = "the watched model" if subject is None else subject.name
    last = data.maybe_object("last_window")
    rows = None if last is None else last.object("signals")
    for each in data.objects("signals", 200):
        signal = each.text("name")
        row = None if rows is None else rows.maybe_object(signal)
        why = each.maybe_text("reason") or (None if row is None else row.maybe_text("reason"))
        if why:
            yield f"Signal {signal} of {name}: {why.rstrip('.')}."
    if not any(each.text("name").startswith("shadow") for each in data.objects("signals", 200)):
        yield f"Scores of {name} beside the dense model: the baseline has none (watch init --dense makes them)."


def _warnings(data: Fields, word: str, subject: Subject | None, place: Place) -> Iterator[str]:
    name = "the watched model" if subject is None else subject.name
    if VERDICTS[word] is False:
        yield f"{place.name}: the watch of {name} says: {word}. {data.text('do', '')}".strip()
    failures = data.maybe("telling_failures") or 0
    if failures:
        yield f"{place.name}: {failures:,.0f} times an alarm could not be told; look at the command and the webhook."
    log = data.maybe_object("log")
    problems = None if log is None else log.maybe_object("problems")
    if problems is not None and problems.data:
        told = [f"{clipped(kind)} {problems.object(kind).count('lines'):,}" for kind in list(problems.data)[:20]]
        yield f"{place.name}: lines of the log with problems, by kind: {', '.join(told)}."
