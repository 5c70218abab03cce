"""Which windows the dense model is asked about once, and how what it says of them is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.recovery.teachers.forms import HiddenForm, SampledForm
from prunekit.recovery.teachers.held_out import HeldOutTeacher
from prunekit.recovery.teachers.kept import Form, KeptTeacher
from prunekit.recovery.teachers.online import OnlineTeacher, Teacher
from prunekit.recovery.teachers.row_file import RowFile
from prunekit.utils.process import ranks

if TYPE_CHECKING:
    from prunekit.data.packed.windows import PackedText, TextPart
    from prunekit.plan.shape import ModelShape
    from prunekit.plan.training import TrainingConfig
    from prunekit.recovery.training.run_folder import RunFolder

# A text that comes so often is worth keeping what is said of it.
_OFTEN = 1.5
# Up to this hidden size whole distributions are kept: 4 KiB a token.
_WIDEST = 2048
# How much of the free disk is taken without having been asked.
_SHARE = 0.5
# Windows whose names are made at a time.
_AT_A_TIME = 256


@dataclass(frozen=True)
class Teaching:
    """The ``teacher`` of a training, and how it works: ``mode`` is online, hidden or sampled; what is kept takes
    ``kept_bytes`` of disk at most, of text that comes ``times`` times."""

    teacher: Teacher
    mode: str = "online"
    kept_bytes: int = 0
    times: float = 1.0
    rows: RowFile | None = None

    def flush(self) -> None:
        """Make safe what was kept: to be called before a checkpoint is written, so that what goes on from it finds all
        that was said before it."""
        if self.rows is not None:
            self.rows.flush()


def settle_teacher(
    folder: RunFolder,
    online: OnlineTeacher,
    shape: ModelShape,
    config: TrainingConfig,
    text: PackedText,
    tokens: int,
    reserve: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> Teaching:
    """The teacher of a training on ``tokens`` of ``text`` as ``config`` asks for it, decided when the training begins
    and the same for all runs that go on from there. ``shape`` is the ``online`` model's; ``reserve`` bytes of the disk
    stay free for checkpoints.

    Raises PrunekitError where the disk is too small for what was asked for.
    """
    asked = config.teacher
    least = _OFTEN if asked == "auto" else 1.0
    pairs = zip(text.parts, text.epochs(tokens), strict=True)
    often = [(part, times) for part, times in pairs if times > 1 and times >= least]
    windows = sum(part.training for part, _ in often)
    begun = folder.settled.get("teacher")
    if ranks.size() > 1:
        # Each process would keep other windows in every epoch. A run that one process began goes on, though.
        if asked not in ("auto", "online") and begun is None:
            raise PrunekitError(
                f"With several processes the dense model is computed beside each step; leave out --set teacher={asked}."
            )
        asked = "online"
    mode = {"auto": "hidden" if shape.hidden_size <= _WIDEST else "sampled"}.get(asked, asked)
    need = 0 if mode == "online" else windows * text.length * _position_bytes(mode, shape, config)
    times = sum(part.training * count for part, count in often) / windows if windows else 1.0
    if begun is None:
        if mode != "online" and not windows:
            mode = "online"
            if asked != "auto":
                note(f"No text comes twice, so nothing is kept of what the dense model says (teacher={asked}).")
        elif mode != "online":
            mode = _checked(mode, asked, need, times, folder.path, reserve, note)
        folder.settle(teacher=mode)
    mode = "online" if ranks.size() > 1 else folder.settled["teacher"]
    teacher: Teacher = online
    rows = None
    if mode != "online":
        kind = f"{mode} {config.samples}" if mode == "sampled" else mode
        rows = RowFile(folder.teacher, kind, reserve, note)
        again = frozenset(name for part, _ in often for name in _names(part, online))
        teacher = KeptTeacher(online, _form(mode, online, shape, config), rows, again)
    teacher = HeldOutTeacher(teacher, online, text.held_out, shape.hidden_size)
    return Teaching(teacher) if rows is None else Teaching(teacher, mode, need, times, rows)


def _checked(
    mode: str, asked: str, need: int, times: float, place: Path, reserve: int, note: Callable[[str], None]
) -> str:
    """``mode``, where the disk is large enough for it; online, where it isn't and nobody asked for more."""
    free = shutil.disk_usage(place).free - reserve
    takes = f"takes {need / 2**30:.1f} GiB of disk, and {max(0, free) / 2**30:.1f} GiB are free beside the checkpoints"
    if asked != "auto" and need > free:
        other = "sampled or teacher=online" if asked == "hidden" else "online"
        raise PrunekitError(
            f"Keeping what the dense model says (teacher={asked}) {takes}; say --set teacher={other}, or choose "
            "another output."
        )
    if asked == "auto" and need > _SHARE * free:
        note(f"The text comes {times:.1f} times, and the dense model reads it each time: keeping what it says {takes}.")
        return "online"
    return mode


def _position_bytes(mode: str, shape: ModelShape, config: TrainingConfig) -> int:
    """What a position takes on the disk at most."""
    if mode == "hidden":
        return HiddenForm.position_bytes(shape.hidden_size)
    return SampledForm.position_bytes(config.samples, shape.vocab_size)


def _form(mode: str, online: OnlineTeacher, shape: ModelShape, config: TrainingConfig) -> Form:
    if mode == "hidden":
        return HiddenForm(online, shape.hidden_size)
    return SampledForm(online, config.samples, shape.vocab_size)


def _names(part: TextPart, online: OnlineTeacher) -> Iterator[bytes]:
    """Of every window of ``part`` that is trained on."""
    import torch

    from prunekit.data.packed.windows import Windows

    for start in range(0, part.training, _AT_A_TIME):
        numbers = np.arange(start, min(start + _AT_A_TIME, part.training))
        yield from online.keys(Windows(*map(torch.from_numpy, part.windows(numbers))))
