"""The folder of a training that is not finished: its text, and checkpoints that a later run goes on from. Where a model
is pruned and trained in turns, the folder also has what each stage has come to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.training import RESOURCES
from prunekit.utils.files.atomic import new_folder, read_json, rewrite_text
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.leftovers import discard, sweep_and_tell
from prunekit.utils.files.replacing import check_place
from prunekit.utils.files.strict_json import parse, read_regular
from prunekit.utils.process.ranks import is_first, shared

_FORMAT, _VERSION = "prunekit-training", 1
_RUN, _TEXT, _TEACHER = "run.json", "text", "teacher"
_STEP = re.compile(r"step-([0-9]{8})")
# What may lie in it: anything else is somebody's.
_KNOWN = re.compile(
    rf"{_RUN}|{_TEXT}|{_TEACHER}|{_STEP.pattern}|stage-[0-9]{{2,4}}(-pruned|\.json)?|\..*\.prunekit-(new|old)-.*"
)


class Checkpoints:
    """The checkpoints of one training, in the folder ``path``."""

    def __init__(self, path: Path):
        self.path = path

    def checkpoint(self, step: int) -> Path:
        """The name of the checkpoint of ``step``."""
        return self.path / f"step-{step:08d}"

    def checkpoints(self) -> list[int]:
        """The steps of which there is a whole checkpoint, rising."""
        return _steps(self.path)

    def keep(self, *steps: int) -> None:
        """Remove all checkpoints but those of ``steps``."""
        for step in self.checkpoints():
            if step not in steps:
                discard(self.checkpoint(step))


class RunFolder(Checkpoints):
    """``path`` with what was ``asked`` for: only the same goes on from there."""

    def __init__(self, path: Path, asked: Mapping[str, Any], settled: Mapping[str, Any]):
        super().__init__(path)
        self.asked = dict(asked)
        self.settled: dict[str, Any] = dict(settled)
        """What was decided once, when the training began: how many steps it has. What the two models are called, for
        people. At the end, which plan the result has."""

    @property
    def text(self) -> Path:
        return self.path / _TEXT

    @property
    def teacher(self) -> Path:
        return self.path / _TEACHER

    def settle(self, **facts: Any) -> None:
        """Decide ``facts`` for this run and all that go on from it. Raises PrunekitError where that can't be kept."""
        self.settled |= facts
        if is_first():
            # Without it all checkpoints are lost, be it to a power cut.
            rewrite_text(self.path / _RUN, _json(self.asked, self.settled), durable=True)

    def pruned(self, stage: int) -> Path:
        """Where the model lies that is trained in ``stage``, which counts from 1."""
        return self.path / f"stage-{stage:02d}-pruned"

    def trained(self, stage: int) -> Checkpoints:
        """The checkpoints of that training."""
        return Checkpoints(self.path / f"stage-{stage:02d}")

    def facts(self, stage: int) -> dict[str, Any] | None:
        """What :meth:`conclude` wrote of ``stage``; None where it has not ended."""
        path = self._facts(stage)
        return read_json(path, "record of a stage") if path.is_file() else None

    def conclude(self, stage: int, facts: Mapping[str, Any]) -> None:
        """Say that ``stage`` has ended. Raises PrunekitError where that can't be kept."""
        rewrite_text(self._facts(stage), json.dumps(facts, allow_nan=False) + "\n", durable=True)

    def forget(self, stage: int) -> None:
        """Remove the models of ``stage``; what it has come to stays known."""
        for path in (self.pruned(stage), self.trained(stage).path):
            if path.is_dir():
                discard(path)

    def _facts(self, stage: int) -> Path:
        return self.path / f"stage-{stage:02d}.json"

    @property
    def is_begun(self) -> bool:
        """Whether it holds what took long to make."""
        return _is_begun(self.path)

    def erase(self) -> None:
        """Remove it with all that is in it, as far as it is a training's."""
        if not is_first():
            return
        _check_own(self.path)
        discard(self.path)


@contextmanager
def run_folder(path: Path, asked: Mapping[str, Any], overwrite: bool = False) -> Iterator[RunFolder]:
    """The folder ``path``, where no other run works as long as the block lasts: one that was begun with the same
    ``asked`` (JSON values) goes on, and ``overwrite`` begins another anew.

    Raises PrunekitError where it holds a training that was asked for something else, or is somebody's own.
    """
    path = path.absolute()
    if not is_first():
        # Rank 0's is that of all.
        yield RunFolder(path, asked, shared({}))
        return
    if os.path.lexists(path):
        _make_way(path, asked, overwrite)
    if not os.path.lexists(path):
        with new_folder(path) as made:
            (made / _RUN).write_text(_json(asked, {}), encoding="utf-8")
    with _alone(path):
        found = _read(path)
        if found is None or found["asked"] != _plain(asked):
            raise PrunekitError(f"Another process began another training in {path} meanwhile; choose another output.")
        sweep_and_tell(path)
        folder = RunFolder(path, asked, found["settled"])
        shared(folder.settled)
        try:
            yield folder
        except BaseException:
            if path.is_dir() and not folder.is_begun:
                folder.erase()
            raise


def _make_way(path: Path, asked: Mapping[str, Any], overwrite: bool) -> None:
    """Remove the training in ``path`` where it was asked for something else, and no process works there."""
    earlier, wanted = _read(path), _plain(asked)
    if earlier is not None and earlier["asked"] == wanted:
        return
    if earlier is None and not overwrite:
        raise _other(path, earlier, asked)
    check_place(path, ())
    _check_own(path)
    with _alone(path):
        # What is there now that nobody else writes.
        earlier = _read(path)
        if earlier is not None and earlier["asked"] == wanted:
            return
        # One without a checkpoint holds nothing that can't be had again.
        if not overwrite and (earlier is None or _is_begun(path)):
            raise _other(path, earlier, asked)
        _check_own(path)
        discard(path)


def _is_begun(path: Path) -> bool:
    return bool(_steps(path)) or any(path.glob("stage-*"))


def end(path: Path, out: Path) -> None:
    """Remove the training in ``path`` where ``out`` is its result: a run that was killed in between left it. And what
    runs that were killed left of trainings that had been removed."""
    path = path.absolute()
    sweep_and_tell(path.parent, path.name)
    found = look(path)
    plan = out / "plan.json"
    if found is None or not plan.is_file() or sha256(plan) != found.settled.get("plan"):
        return
    with _alone(path):
        found.erase()


def look(path: Path) -> RunFolder | None:
    """The training in the folder ``path``, to be read; None where there is none. Another run may be working there."""
    found = _read(path)
    return None if found is None else RunFolder(path.absolute(), found["asked"], found["settled"])


def _steps(path: Path) -> list[int]:
    if not path.is_dir():
        return []
    found = (_STEP.fullmatch(each.name) for each in path.iterdir() if each.is_dir())
    return sorted(int(match[1]) for match in found if match)


def _read(path: Path) -> dict[str, Any] | None:
    """What run.json says; None where it is missing or no such file."""
    try:
        data = parse(read_regular(path / _RUN))
    except (OSError, ValueError):
        return None
    sound = (
        isinstance(data, dict)
        and data.get("format") == _FORMAT
        and data.get("version") == _VERSION
        and isinstance(data.get("asked"), dict)
        and isinstance(data.get("settled"), dict)
    )
    if not sound:
        return None
    settings = data["asked"].get("settings")
    if isinstance(settings, dict) and not {*RESOURCES}.isdisjoint(settings):
        # Earlier versions went on with the same ones alone.
        data["settled"].setdefault("resources", {name: settings.pop(name, None) for name in RESOURCES})
    return data


def _other(path: Path, earlier: dict[str, Any] | None, asked: Mapping[str, Any]) -> PrunekitError:
    if earlier is None:
        return PrunekitError(
            f"{path} is where the training would keep what it needs to go on, and something else is there; move it "
            "away, or choose another output."
        )
    wanted = _plain(asked)
    differing = sorted(name for name in {*wanted, *earlier["asked"]} if wanted.get(name) != earlier["asked"].get(name))
    return PrunekitError(
        f"{path} holds a training that was begun with another {' and another '.join(differing)}. Give the same to go "
        "on with it, or say --overwrite to throw it away and begin anew."
    )


def _check_own(path: Path) -> None:
    """Raises PrunekitError where ``path`` holds what no training wrote."""
    if path.is_symlink() or not path.is_dir():
        raise PrunekitError(f"{path} is no folder of a training, so it is not replaced; move it away.")
    found = sorted(entry.name for entry in os.scandir(path))
    strange = next((name for name in found if not _KNOWN.fullmatch(name)), None)
    if strange is not None or (found and _read(path) is None):
        what = f"also holds {strange}, which" if strange is not None else "is a folder that"
        raise PrunekitError(f"{path} {what} prunekit did not write, so it is not replaced; move that away.")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Raises PrunekitError where another process works in ``path``. The system drops the lock with the process."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    taken = PrunekitError(f"Another process trains in {path}; wait for it, or choose another output.")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise taken from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        except OSError:
            pass  # a file system without locks
        # Another may have removed what was opened, and made a new one of that name.
        if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
            raise taken
        yield
    finally:
        os.close(handle)


def _plain(values: Mapping[str, Any]) -> Any:
    """As JSON gives them back."""
    return json.loads(json.dumps(dict(values)))


def _json(asked: Mapping[str, Any], settled: Mapping[str, Any]) -> str:
    data = {"format": _FORMAT, "version": _VERSION, "asked": dict(asked), "settled": dict(settled)}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
