"""``watch run``: judge a log's windows against a baseline, keep what is needed to go on, tell of alarms."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.alarms.command import Command, parse_command
from prunekit.monitoring.alarms.prometheus import text
from prunekit.monitoring.alarms.webhook import check_url
from prunekit.monitoring.baseline.gather import windows
from prunekit.monitoring.baseline.stored import Baseline, read_baseline
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Seen
from prunekit.monitoring.running.folder import COMMAND_LOG, Folder
from prunekit.monitoring.running.rotation import Mark
from prunekit.monitoring.running.session import Session
from prunekit.monitoring.running.source import Source
from prunekit.monitoring.running.teller import Teller
from prunekit.monitoring.signals.protocol import ModelSignal
from prunekit.monitoring.verdicts.watcher import Watcher
from prunekit.utils.files.atomic import rewrite_text
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.strict_json import read_regular
from prunekit.utils.names import printable
from prunekit.utils.phases.telling import phases, say
from prunekit.utils.progress import progress

_READING = "Judging the log"
_PROMETHEUS_MARK = b"# HELP prunekit_watch_"
# Seconds between two writings of the state, and the figures, of a log that is read fast.
_KEEP_EVERY = 2.0


@dataclass(frozen=True)
class TellConfig:
    """How alarms are told: ``on_alarm`` is a command line, ``webhook`` a URL, ``prometheus`` a text file. An alarm is
    told once, and no other one that is as severe or less for ``cool_down_hours``; a command is ended after
    ``command_minutes``."""

    on_alarm: str | None = None
    webhook: str | None = None
    prometheus: Path | None = None
    cool_down_hours: float = 24.0
    command_minutes: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.cool_down_hours <= 24 * 366:
            raise PrunekitError(f"Hours of the cool-down must be from 0 to 8784, got {self.cool_down_hours}.")
        if not 0 < self.command_minutes <= 60 * 24 * 31:
            raise PrunekitError(f"Minutes of a command must be above 0 and at most 44640, got {self.command_minutes}.")
        if self.webhook is not None:
            check_url(self.webhook)


@dataclass(frozen=True)
class WatchResult:
    """What a run came to: the last ``verdict``, whether an alarm is active or began in this run (``alarm``), and the
    ``data`` of watch.json."""

    verdict: str
    alarm: bool
    data: dict[str, Any]


def watch_run(
    logs: Sequence[str | Path],
    baseline: str | Path,
    output: str | Path = "watch",
    *,
    signals: Callable[[Baseline], Sequence[ModelSignal]] | None = None,
    tell: TellConfig | None = None,
    follow: bool = False,
    every: float = 5.0,
    reset: bool = False,
    note: Callable[[str], None] = say,
) -> WatchResult:
    """Judge the windows of ``logs`` that an earlier run in the folder ``output`` has not, and keep what the next run
    needs there. ``signals`` makes those of models; without it, those of the baseline are off.

    With ``follow`` it goes on as the logs grow, looking every so many seconds, until it is interrupted. ``reset``
    begins all sums anew, as after a repair, and ends an open alarm; reading goes on where it stood. ``note`` is told
    what a user should know.
    Raises PrunekitError where a file can't be read, or another run works in ``output``.

    >>> import prunekit
    >>> result = prunekit.watch_run(["today.jsonl"], "base.json", "watch")  # doctest: +SKIP
    >>> result.alarm  # doctest: +SKIP
    False
    """
    tell = tell or TellConfig()
    if not 0 < every <= 86400:
        raise PrunekitError(f"Seconds between two looks must be above 0 and at most 86400, got {every}.")
    paths = [Path(each).expanduser() for each in ([logs] if isinstance(logs, str | Path) else logs)]
    if len({str(each) for each in paths}) < len(paths):
        raise PrunekitError("A log is named twice; name each once.")
    command = None if tell.on_alarm is None else parse_command(tell.on_alarm)
    prometheus = None if tell.prometheus is None else Path(tell.prometheus).expanduser()
    if prometheus is not None:
        _check_prometheus(prometheus)
    path = Path(baseline).expanduser()
    base = read_baseline(path)
    folder = Folder(Path(output).expanduser())
    with folder.locked():
        digest = sha256(path)
        state = folder.read_state(digest)
        folder.open_history(state.get("history_bytes", 0))
        models = list(signals(base)) if signals is not None else []
        problems = Problems()
        # A state is prunekit's own, but a disk may have spoiled it.
        try:
            marks = {name: Mark(**each) for name, each in state.get("marks", {}).items()}
            before, told = state.get("watcher", {}), state.get("teller", {})
            if reset:
                before, told = Watcher.begun_anew(before), {**told, "told": {}, "commands": []}
            watcher = Watcher(base, models, before, note)
            teller = Teller(
                told,
                command=None
                if command is None
                else Command(command, folder.path / COMMAND_LOG, 60 * tell.command_minutes),
                url=tell.webhook,
                cool_down=3600 * tell.cool_down_hours,
                model=base.models.get("model", "model"),
                note=note,
            )
            source = Source(paths, marks, problems, Seen(state.get("seen", [])), base.config.served_name)
            session = Session(base, watcher, teller, source, state.get("session", {}), digest)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise PrunekitError(
                f"The state in {printable(str(folder.path))} is damaged; choose another folder with --output."
            ) from None
        if reset:
            session.reset()
        return _run(session, folder, digest, base, models, follow, every, prometheus, note)


def _run(
    session: Session,
    folder: Folder,
    digest: str,
    base: Baseline,
    models: Sequence[ModelSignal],
    follow: bool,
    every: float,
    prometheus: Path | None,
    note: Callable[[str], None],
) -> WatchResult:
    kept, lost = -_KEEP_EVERY, False
    # As of the last closed window: what was read since is read again by the next run.
    held = session.to_state()

    def keep() -> None:
        nonlocal kept
        folder.write_state({"baseline": digest, **held, "teller": session.teller.to_dict()})
        kept = time.monotonic()

    def publish() -> None:
        nonlocal lost
        keep()
        data = session.summary()
        if data["verdict"] != session.verdict and not lost:
            note(f"{data['verdict']}: {' '.join(data['reasons'])}")
        lost = data["verdict"] != session.verdict
        folder.write_watch(data)
        if prometheus is not None:
            rewrite_text(prometheus, text(data))

    def idle() -> bool:
        session.teller.work(keep)
        publish()
        time.sleep(every)
        return True

    size = max(1, sum(path.stat().st_size for path in session.source.paths))
    try:
        with phases(_READING), progress(_READING, size) as advance:
            done = 0
            for each in windows(session.source.requests(idle if follow else None), base.config.window, models):
                row, changed = session.judge(each.figures, each.sampled)
                folder.add_row(row)
                held = session.to_state()
                if changed or time.monotonic() - kept > _KEEP_EVERY:
                    publish()
                    if changed:
                        note(f"window {row['window']}: {row['verdict']}. {' '.join(row['reasons'])}")
                        session.teller.work(keep)
                    now = min(size, session.source.read())
                    advance(now - done)
                    done = now
        session.teller.work(keep, wait=True)
    finally:
        session.teller.stop()
        keep()
    publish()
    for words in session.source.problems.sentences():
        note(words)
    data = session.summary()
    return WatchResult(data["verdict"], session.alarmed, data)


def _check_prometheus(path: Path) -> None:
    """Raises PrunekitError where the file is somebody else's, or its folder is missing."""
    shown = printable(str(path))
    if not path.parent.is_dir():
        raise PrunekitError(f"The folder {path.parent} does not exist; make it, or write the figures elsewhere.")
    if path.is_symlink() or path.exists():
        try:
            ours = read_regular(path, 1 << 24)
        except (OSError, ValueError) as error:
            raise PrunekitError(f"{shown} can't be replaced ({error}); choose another name with --prom.") from None
        if path.is_symlink() or (ours and not ours.startswith(_PROMETHEUS_MARK)):
            raise PrunekitError(f"{shown} was not written by prunekit watch; choose another name with --prom.")
