"""Curves for TensorBoard: what is in them, after a training that was interrupted too, and without the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.errors import PrunekitError
from prunekit.recovery.training.progress import Estimate, Listener
from prunekit.report import tensorboard
from prunekit.report.tensorboard import in_tensorboard

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def _estimate(left: int) -> Estimate:
    return Estimate(
        tokens=640,
        steps=10,
        left=left,
        tokens_per_second=1.0,
        memory=None,
        disk=0,
        teacher="online",
        teacher_bytes=0,
        times=1.0,
        start_kl=0.9,
    )


def _row(step: int, kl: float | None = 0.5) -> dict:
    return {"step": step, "kl": kl, "loss": 2.0, "rate": 1e-4, "norm": 0.3, "seconds": 0.5}


def _read(folder: Path) -> dict[str, dict[int, float]]:
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: {each.step: pytest.approx(each.value) for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }


def test_steps_and_held_out_text_have_curves(tmp_path: Path) -> None:
    rows: list[dict] = []
    estimates: list[Estimate] = []
    with in_tensorboard(tmp_path / "runs" / "a", Listener(row=rows.append, estimate=estimates.append)) as listener:
        listener.estimate(_estimate(10))
        for row in (_row(0), _row(1, None), {"held_out": {"step": 2, "kl": 0.4, "loss": 1.5}}):
            listener.row(row)
    assert len(rows) == 3 and len(estimates) == 1
    assert _read(tmp_path / "runs" / "a") == {
        "held_out/kl": {0: 0.9, 2: 0.4},
        "held_out/loss": {2: 1.5},
        "train/kl": {0: 0.5},
        "train/loss": {0: 2.0, 1: 2.0},
        "train/learning_rate": {0: 1e-4, 1: 1e-4},
        "train/gradient_norm": {0: 0.3, 1: 0.3},
        "train/tokens_per_second": {0: 128.0, 1: 128.0},
    }


def test_a_training_that_goes_on_replaces_the_steps_that_it_does_again(tmp_path: Path) -> None:
    for first, kl in ((0, 0.5), (3, 0.25)):
        with in_tensorboard(tmp_path, Listener()) as listener:
            listener.estimate(_estimate(10 - first))
            for step in range(first, first + 5):
                listener.row(_row(step, kl))
    kept = _read(tmp_path)
    assert kept["train/kl"] == {0: 0.5, 1: 0.5, 2: 0.5, **dict.fromkeys(range(3, 8), 0.25)}
    assert kept["held_out/kl"] == {0: 0.9}


def test_steps_of_stages_count_on_also_where_one_is_gone_on_with(tmp_path: Path) -> None:
    """Two stages of 10 steps in all: the second run was killed in the second stage, after its third step."""
    ladder = [{"stage": 1, "steps": 10}, {"stage": 2, "steps": 10}]
    for starts, kl in (({1: 0, 2: 0}, 0.5), ({2: 2}, 0.25)):
        with in_tensorboard(tmp_path, Listener()) as listener:
            listener.row({"stages": ladder})
            for stage, first in starts.items():
                listener.row({"stage": stage, "of": 2, "phase": "training"})
                listener.estimate(_estimate(10 - first))
                for step in range(first, 10 if kl < 0.5 or stage == 1 else 3):
                    listener.row({"stage": stage, **_row(step, kl)})
                    if step == 1:
                        listener.row({"stage": stage, "held_out": {"step": 2, "kl": 0.4, "loss": 1.5}})
            listener.row({"stage": 2, "held_out": {"step": 3 if kl == 0.5 else 10, "kl": 0.3, "loss": 1.5}})
    kept = _read(tmp_path)
    assert kept["train/kl"] == {**dict.fromkeys(range(12), 0.5), **dict.fromkeys(range(12, 20), 0.25)}
    # What was measured where the second run began is still there, and what came after is not.
    assert kept["held_out/kl"] == {0: 0.9, 2: 0.4, 10: 0.9, 12: 0.4, 20: 0.3}


def test_what_lies_there_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with in_tensorboard(tmp_path, Listener()) as listener:
        listener.estimate(_estimate(10))
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_written_is_told_before_the_training_or_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with (
        pytest.raises(PrunekitError, match="choose another --tensorboard"),
        in_tensorboard(tmp_path / "taken", Listener()),
    ):
        pass
    notes: list[str] = []
    with in_tensorboard(tmp_path / "runs", Listener(note=notes.append)) as listener:
        listener.estimate(_estimate(10))

        class Full:
            def add_scalar(self, *given):
                raise OSError(28, "No space left on device")

        curves = listener.row.__self__  # type: ignore[attr-defined]
        curves._writer.close()
        curves._writer = Full()
        for step in range(3):
            listener.row(_row(step))
    assert len(notes) == 1 and "No space left" in notes[0]


def test_without_the_package_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tensorboard, "installed", lambda package: None)
    with (
        pytest.raises(PrunekitError, match=r"needs the package tensorboard: pip install '\.\[tensorboard\]'"),
        in_tensorboard(tmp_path / "runs", Listener()),
    ):
        pass
    assert not (tmp_path / "runs").exists()
