"""``watch init``: read a reference log once, learn what is normal, set the limits, write base.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.baseline.bounds import bounds_of
from prunekit.monitoring.baseline.calibrate import alarms_a_year, calibrate, model_windows
from prunekit.monitoring.baseline.gather import windows
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.baseline.stored import WHAT, Baseline
from prunekit.monitoring.baseline.times import Times
from prunekit.monitoring.log.lines import opened
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Place, Seen, read_from
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.signals.protocol import Keeps, ModelSignal
from prunekit.monitoring.signals.reference import Gathered
from prunekit.monitoring.statistics.null import CALIBRATED, LEAST
from prunekit.utils.files.atomic import check_output_file, write_text
from prunekit.utils.files.hashes import sha256
from prunekit.utils.machine import cpu_name
from prunekit.utils.names import printable
from prunekit.utils.phases.telling import phases
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

_READING, _SCORING = "Reading the reference log", "Scoring the reference with the models"
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def watch_init(
    reference: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    config: WatchConfig | None = None,
    signals: Sequence[ModelSignal] = (),
    models: dict[str, str] | None = None,
    overwrite: bool = False,
) -> Baseline:
    """Make the baseline of a deployed model from a healthy request log, and write it to ``output``.

    ``signals`` are those that need models, named in ``models``. Windows of the reference are scored against the rest of
    it; limits come from the false alarms a year that ``config`` allows. Raises PrunekitError where the log can't be
    read, is too short, or does not tell how many requests a day there are and ``config`` neither.

    >>> import prunekit
    >>> base = prunekit.watch_init("release-week.jsonl", "base.json")  # doctest: +SKIP
    >>> prunekit.watch_run(["today.jsonl"], "base.json", "watch").verdict  # doctest: +SKIP
    'ok'
    """
    config = config or WatchConfig()
    given = [reference] if isinstance(reference, str | Path) else list(reference)
    paths = [Path(each).expanduser() for each in given]
    output = Path(output).expanduser()
    check_output_file(output, overwrite, what=WHAT, inputs=paths)
    problems, times, gathered = Problems(), Times(), Gathered()
    with phases(_READING, *([_SCORING] if signals else [])):
        with progress(_READING, _size(paths)) as advance:
            done = 0
            for each in windows(_timed(paths, problems, times, config.served_name), config.window, signals):
                gathered.add(each.figures, each.sampled, bool(signals))
                advance(each.place - done)
                done = each.place
        per_day = _check_log(paths, problems, times, gathered, config)
        whole = gathered.reference()
        if signals:
            with progress(_SCORING, len(signals) * model_windows(gathered)) as advance:
                calibrated = calibrate(gathered, whole, config, per_day, signals, advance)
        else:
            calibrated = calibrate(gathered, whole, config, per_day)
    made = Baseline(
        config=config,
        per_day=per_day,
        reference=whole,
        signals=calibrated,
        bounds=bounds_of(gathered.outcomes, config),
        outcomes=tuple(gathered.outcomes),
        log=_about(paths, problems, times, gathered),
        notes=_notes(problems, times, gathered, calibrated, config, per_day),
        models={name: model_label(each) for name, each in (models or {}).items()},
        run={"versions": versions(), "cpu": cpu_name(), "made": datetime.now(timezone.utc).isoformat()},
    )
    for signal in signals:
        if isinstance(signal, Keeps):
            signal.keep()
    write_text(output, json.dumps(made.to_dict(), allow_nan=False) + "\n", overwrite, what=WHAT, inputs=paths)
    return made


def _size(paths: Sequence[Path]) -> int:
    return max(1, sum(path.stat().st_size for path in paths if path.is_file()))


def _timed(paths: Sequence[Path], problems: Problems, times: Times, only: str | None) -> Iterator[tuple[Request, int]]:
    """The requests, with how many bytes of all files were read; of packed ones at most their size."""
    before, seen = 0, Seen()
    for path in paths:
        with opened(path):
            size = path.stat().st_size
        for request, place in read_from(path, Place(), problems, seen, only=only):
            times.add(request)
            yield request, before + min(place.offset, size)
        before += size


def _check_log(
    paths: Sequence[Path], problems: Problems, times: Times, gathered: Gathered, config: WatchConfig
) -> float:
    """Requests a day. Raises PrunekitError where the log can't be a reference."""
    if gathered.windows < LEAST:
        shown = ", ".join(printable(path.name) for path in paths)
        why = f" Of its lines, {problems.sentences()[0]}" if problems.counts and not problems.requests else ""
        raise PrunekitError(
            f"The reference log ({shown}) holds {problems.requests:,} requests, which make {gathered.windows} windows "
            f"of {config.window}; {LEAST} windows are needed and {CALIBRATED} wanted. Give a longer log or a smaller "
            f"--window.{why}"
        )
    per_day = config.requests_per_day or times.span().per_day
    if per_day is None:
        raise PrunekitError(
            "The reference log does not tell when requests came, so false alarms a year can't be promised; say how "
            "many there are a day with --requests-per-day."
        )
    return per_day


def _about(paths: Sequence[Path], problems: Problems, times: Times, gathered: Gathered) -> dict[str, Any]:
    span = times.span()
    return {
        "files": [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths],
        "windows": gathered.windows,
        "windows_kept": len(gathered.kept),
        "first": span.first,
        "last": span.last,
        "weekdays": sorted(span.weekdays),
        **problems.to_dict(),
    }


def _notes(
    problems: Problems, times: Times, gathered: Gathered, signals: Any, config: WatchConfig, per_day: float
) -> list[str]:
    """What to know before the baseline is relied on."""
    notes, span = problems.sentences(), times.span()
    if span.outside:
        notes.append(
            f"{span.outside:,} of {span.outside + span.counted:,} requests have a time more than a week from all "
            "others, as a broken clock writes: requests a day and days of the week are counted without them."
        )
    if span.weekdays and len(span.weekdays) < 7:
        missing = ", ".join(name for day, name in enumerate(_DAYS) if day not in span.weekdays)
        notes.append(
            f"The reference has no requests of {missing}: what is different on such days will look like drift. Give a "
            "log of whole weeks."
        )
    if any(not each.is_off and not each.decides for each in signals):
        notes.append(
            f"Some signals have fewer than {CALIBRATED} independent windows of {config.window}: uncalibrated, they "
            "warn only. Give a longer log or a smaller --window."
        )
    expected = alarms_a_year(signals, config, per_day)
    if expected > 1.05 * config.false_alarms:
        notes.append(
            f"About {expected:,.3g} false alarms a year are to be expected, not {config.false_alarms:g}: the reference "
            "has too few windows for so few. Give a longer log or a smaller --window."
        )
    alike = max((each.null.neighbours for each in signals if each.null is not None), default=0.0)
    if alike > 0:
        notes.append(
            f"Windows that follow each other are alike (correlation up to {alike:.2f}), as in a day's course; limits "
            "are wider for it. A larger --window may find more."
        )
    if gathered.outcomes[0] == 0:
        notes.append(
            "The log tells no outcomes, so nothing here sees whether people could use the answers: give them as "
            "`outcome` where you can."
        )
    return notes
