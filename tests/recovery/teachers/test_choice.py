"""What is kept, and of which text; a training that keeps ends as one that does not, and goes on after a kill."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prunekit.cli.tables.recovery import estimate_line
from prunekit.data.packed.windows import Windows
from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.teachers import row_file
from prunekit.recovery.teachers.choice import settle_teacher
from prunekit.recovery.teachers.online import OnlineTeacher
from prunekit.recovery.training.progress import Estimate, Listener
from prunekit.utils.process import ranks
from tests.support.command import SENTENCE
from tests.support.recovering import killed_before, recover_tiny
from tests.support.tiny_training import LENGTH, RandomText, tiny_pair, tiny_teacher

Usage = namedtuple("Usage", "total used free")
SHAPE = FAMILIES["llama"].shape(tiny_pair()[0].config)
WIDE = replace(SHAPE, hidden_size=4096)


class Part:
    def __init__(self, training: int, seed: int):
        self.training, self._seed = training, seed

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.arange(LENGTH) + (numbers[:, None] + 1000 * self._seed)
        return ids, np.zeros_like(ids)


class Text(RandomText):
    """Two texts of 300 and 100 windows, of which the first comes ``first`` times and the other four."""

    length = LENGTH

    def __init__(self, first: float):
        super().__init__()
        self.parts = (Part(300, 0), Part(100, 1))
        self._times = (first, 4.0)

    def epochs(self, tokens: int) -> tuple[float, ...]:
        return self._times


def _settled(folder: Path, first: float = 1.2, shape: Any = SHAPE, notes: list[str] | None = None, **given: Any):
    class Folder(SimpleNamespace):
        def settle(self, **facts: Any) -> None:
            self.settled |= facts

    online = tiny_teacher(tiny_pair()[0])
    config = TrainingConfig(**{name: value for name, value in given.items() if name != "reserve"})
    place = Folder(path=folder, teacher=folder / "teacher", settled={})
    note = (notes if notes is not None else []).append
    return settle_teacher(place, online, shape, config, Text(first), 1, given.get("reserve", 0), note), place  # type: ignore[arg-type]


def test_by_default_text_that_comes_often_is_kept_whole_or_drawn_by_the_models_width(tmp_path: Path) -> None:
    made, place = _settled(tmp_path)
    assert (made.mode, made.kept_bytes, made.times) == ("hidden", 100 * LENGTH * 64 * 2, 4.0)
    assert place.settled == {"teacher": "hidden"}
    both, _ = _settled(tmp_path, first=1.5)
    assert both.kept_bytes == 400 * LENGTH * 64 * 2 and both.times == pytest.approx((300 * 1.5 + 400) / 400)
    wide, _ = _settled(tmp_path, shape=WIDE)
    assert (wide.mode, wide.kept_bytes) == ("sampled", 100 * LENGTH * (50 * 4 + 6))


@pytest.mark.parametrize("mode", ["hidden", "sampled"])
def test_who_asks_gets_all_text_kept_that_comes_twice(tmp_path: Path, mode: str) -> None:
    made, _ = _settled(tmp_path, teacher=mode)
    assert made.mode == mode
    keys = tiny_teacher(tiny_pair()[0]).keys(_windows(Part(300, 0)))
    teacher: Any = made.teacher
    assert teacher._teacher._again.issuperset(keys) and len(teacher._teacher._again) == 400


def _windows(part: Part) -> Windows:
    return Windows(*map(torch.from_numpy, part.windows(np.arange(part.training))))


def test_text_that_comes_once_is_never_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Text, "epochs", lambda self, tokens: (1.0, 0.4))
    notes: list[str] = []
    assert _settled(tmp_path, notes=notes)[0].mode == "online" and not notes
    made, place = _settled(tmp_path, notes=notes, teacher="sampled")
    assert made.mode == "online" and place.settled == {"teacher": "online"} and "No text comes twice" in notes[0]
    assert not (tmp_path / "teacher").exists()


def test_a_small_disk_is_not_filled_unasked_and_refuses_what_was_asked(tmp_path: Path, monkeypatch) -> None:
    need, reserve = 100 * LENGTH * 64 * 2, 10**6
    notes: list[str] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, reserve + 2 * need))
    assert _settled(tmp_path, reserve=reserve, notes=notes)[0].mode == "hidden" and not notes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, reserve + 2 * need - 2))
    made, place = _settled(tmp_path, reserve=reserve, notes=notes)
    assert made.mode == "online" and place.settled == {"teacher": "online"}
    assert "comes 4.0 times" in notes[0] and "GiB are free" in notes[0]
    with pytest.raises(PrunekitError, match=r"teacher=hidden\) takes .*--set teacher=sampled or teacher=online"):
        _settled(tmp_path, first=2.0, reserve=reserve, teacher="hidden")


def test_what_was_settled_stays(tmp_path: Path, monkeypatch) -> None:
    _, place = _settled(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    online = tiny_teacher(tiny_pair()[0])
    assert settle_teacher(place, online, SHAPE, TrainingConfig(), Text(1.2), 1).mode == "hidden"


@pytest.mark.parametrize("asked", ["auto", "hidden"])
def test_what_one_process_keeps_several_compute(tmp_path: Path, monkeypatch, asked: str) -> None:
    _, place = _settled(tmp_path, teacher=asked)
    online, config = tiny_teacher(tiny_pair()[0]), TrainingConfig(teacher=asked)
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "size", lambda: 2)
        assert settle_teacher(place, online, SHAPE, config, Text(1.2), 1).mode == "online"
        with pytest.raises(PrunekitError, match="With several processes"):
            _settled(tmp_path, teacher="hidden")
    assert settle_teacher(place, online, SHAPE, config, Text(1.2), 1).mode == "hidden"


def test_the_estimate_tells_what_is_kept() -> None:
    facts = {"tokens": 10, "steps": 1, "left": 1, "tokens_per_second": 1.0, "memory": None, "start_kl": 0.5}
    line = estimate_line(Estimate(**facts, disk=3 << 30, teacher="hidden", teacher_bytes=1 << 30, times=2.5))
    assert "3.0 GiB of disk, 1.00 GiB of it for the dense model's last hidden states of text that comes 2.5" in line
    line = estimate_line(Estimate(**facts, disk=3 << 30, teacher="online", teacher_bytes=0, times=1.0))
    assert "dense model's" not in line


def _counted(monkeypatch) -> list[int]:
    asked: list[int] = []
    original = OnlineTeacher.hidden

    def hidden(self, windows):
        asked.append(len(windows.ids))
        return original(self, windows)

    monkeypatch.setattr(OnlineTeacher, "hidden", hidden)
    return asked


@pytest.fixture(scope="module")
def short(places: Path) -> str:
    """Text of some forty windows: 24 steps of four windows go through it more than twice."""
    path = places / "short.txt"
    path.write_text("\n\n".join(f"{number} {SENTENCE}" for number in range(6)), encoding="utf-8")
    return str(path)


def test_kept_text_is_computed_once_and_comes_to_the_same(
    places: Path, tmp_path: Path, monkeypatch, short: str
) -> None:
    asked = _counted(monkeypatch)
    kl: dict[str, list[float]] = {}
    for mode in ("online", "hidden", "sampled"):
        asked.clear()
        estimates: list[Estimate] = []
        made = recover_tiny(
            places,
            tmp_path / mode,
            text=short,
            tokens=64 * 24,
            settings={"teacher": mode, "samples": 20},
            listener=Listener(estimate=estimates.append),
        )
        kl[mode] = [row["kl"] for row in made.standing.steps]
        assert made.facts["teacher"]["distributions"] == mode and made.after < made.before
        (part,) = made.facts["text"]["parts"]
        windows = part["windows"] - part["held_out"]
        assert windows < 48
        # The trial has three steps of four windows, and the text to judge by is asked for once.
        assert sum(asked) - 12 - part["held_out"] in ((96,) if mode == "online" else range(windows, windows + 4))
        assert estimates[0].times == (1.0 if mode == "online" else 96 / windows)
        assert not (tmp_path / f"{mode}.training").exists()
    assert kl["hidden"] == pytest.approx(kl["online"], rel=0.02)
    assert sum(kl["sampled"]) == pytest.approx(sum(kl["online"]), rel=0.1)


@pytest.mark.parametrize("mode", ["hidden", "sampled"])
def test_a_training_that_keeps_goes_on_bit_for_bit(
    places: Path, tmp_path: Path, monkeypatch, short: str, mode: str
) -> None:
    given = {"text": short, "tokens": 64 * 24, "settings": {"teacher": mode, "samples": 8}}
    whole = recover_tiny(places, tmp_path / "whole", **given)
    asked = _counted(monkeypatch)
    for step in (5, 20):
        with killed_before(step):
            recover_tiny(places, tmp_path / "out", **given)
        assert (tmp_path / "out.training" / "teacher" / "rows.safetensors").is_file()
    asked.clear()
    made = recover_tiny(places, tmp_path / "out", **given)
    # The trial's windows; from the last checkpoint on all is read.
    assert sum(asked) - 12 in (0, made.facts["text"]["held_out"])
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert made.standing.steps == whole.standing.steps and made.after == whole.after


def test_a_disk_that_fills_up_is_told_and_the_training_ends_well(
    places: Path, tmp_path: Path, monkeypatch, short: str
) -> None:
    asked: list[Any] = []

    def usage(path: Any) -> Usage:
        asked.append(path)
        return Usage(0, 0, 10**12 if len(asked) < 20 else 0)

    monkeypatch.setattr(row_file.shutil, "disk_usage", usage)
    notes: list[str] = []
    given = {"text": short, "tokens": 64 * 14, "settings": {"teacher": "hidden"}}
    made = recover_tiny(places, tmp_path / "out", **given, listener=Listener(note=notes.append))
    assert made.after < made.before and made.standing.step == 14
    (note,) = notes
    assert "nearly full" in note
