"""What the dense model has still to write: told before, and part of the time that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.data.self_generated import CHUNK, Writer
from prunekit.data.token_file import pack_text
from prunekit.data.writing_speed import writing_speed
from prunekit.models.dense import DenseModel
from prunekit.models.source import resolve
from prunekit.plan import Plan
from prunekit.plan.training import TextConfig
from prunekit.recovery import own_text
from prunekit.recovery.own_text import OwnText
from prunekit.recovery.training.progress import Listener
from prunekit.utils.process import ranks
from tests.support.ranks import run_ranks
from tests.support.recovering import recover_tiny
from tests.support.tiny_text import tiny_tokenizer

LENGTH = 16
# Chunks of eight windows are the least that is written.
GRAIN = 8 * LENGTH


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All is long enough to be timed, 100 tokens are written a second, and so often was that measured."""
    asked: list[int] = []

    def speed(dense: DenseModel, length: int, *, sequences: int, writer: Writer | None) -> float:
        assert length == LENGTH and 1 <= sequences <= CHUNK
        asked.append(sequences)
        return 100.0

    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(own_text, "writing_speed", speed)
    monkeypatch.setattr(own_text, "_SOON", 1.0)
    return asked


@pytest.fixture
def dense(places: Path) -> DenseModel:
    return DenseModel(resolve(str(places / "dense")), dtype="float32", device="cpu")


def _config(source: str) -> TextConfig:
    return TextConfig(source, length=LENGTH, held_out=4)


@pytest.mark.parametrize(("share", "tokens"), [(1.0, 5454), (0.5, 10_000), (0.25, 17_143)])
def test_time_is_for_writing_and_for_training(
    places: Path, dense: DenseModel, measured: list[int], share: float, tokens: int
) -> None:
    """60 seconds at 1,000 tokens a second to train and 100 to write: T / 1,000 + share · T / 100 = 60."""
    source = "self" if share == 1 else f"{places / 'text.txt'}:{1 - share},self:{share}"
    own = OwnText(_config(source))
    found = own.reach(60.0, 1000.0, dense, None)
    # Windows held out are written too, and whole chunks.
    assert tokens - (GRAIN + 4 * LENGTH) / share <= found <= tokens
    assert own.reach(120.0, 1000.0, dense, None) == pytest.approx(2 * found, rel=0.05)
    assert len(measured) == 1


def test_what_is_kept_takes_no_time(dense: DenseModel) -> None:
    own = OwnText(_config("self"))
    before = own.reach(60.0, 1000.0, dense, None)

    def write(starts, length: int, seed: int):
        return starts.repeat(1, length)

    writer = Writer("fast", write)
    assert own.reach(60.0, 1000.0, dense, writer) == before
    folder = Path(dense.source.path).parent / "kept"
    pack_text(folder, _config("self"), before, tiny_tokenizer(), dense, writer=writer)
    # Ten elevenths of the time had been for writing what is kept now.
    after = own.reach(60.0, 1000.0, dense, writer)
    assert after == pytest.approx(before + (60 - before / 1000) / (1 / 1000 + 1 / 100), abs=2 * GRAIN)
    assert own.reach(before / 1000, 1000.0, dense, writer) == pytest.approx(before, abs=1)


def test_text_that_nobody_writes_takes_none(places: Path, dense: DenseModel, measured: list[int]) -> None:
    own = OwnText(_config(str(places / "text.txt")))
    assert own.reach(60.0, 1000.0, dense, None) == 60_000 and measured == []
    assert own.reach(1e-9, 1000.0, dense, None) == 0


def test_time_that_is_too_short_to_write_is_no_error(dense: DenseModel) -> None:
    assert OwnText(_config("self")).reach(0.5, 1000.0, dense, None) == 0


def test_what_takes_long_to_write_is_told_before(places: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(own_text, "writing_speed", lambda *given, **more: 2.0)
    notes: list[str] = []
    mix = f"{places / 'text.txt'}:0.5,self:0.5"
    recover_tiny(places, tmp_path / "out", text=mix, listener=Listener(note=notes.append))
    # Half of 32 windows and of four that are held out, in chunks of eight: 24 windows.
    assert notes == [
        "First the dense model writes 384 tokens of text (self): about 3 minutes, by a few trial steps. What it has "
        "written is kept, also where this is stopped. Text of your own (--text) needs no such time."
    ]
    notes.clear()
    recover_tiny(places, tmp_path / "again", text=mix, listener=Listener(note=notes.append))
    assert notes == []


def test_minutes_leave_room_for_what_is_written(places: Path, tmp_path: Path, monkeypatch) -> None:
    from prunekit.recovery import lessons
    from prunekit.recovery.training.trial import Trial

    monkeypatch.setattr(lessons, "run_trial", lambda *given: Trial(1000.0, None))
    monkeypatch.setattr(own_text, "writing_speed", lambda *given, **more: 1000.0)
    steps = {
        text: recover_tiny(places, tmp_path / text, text=source, tokens=None, minutes=1 / 60).standing.step
        for text, source in (("own", "self"), ("read", str(places / "text.txt")))
    }
    # 1,000 tokens are 16 steps of 64; half of the second goes to writing.
    assert steps["read"] == 16 and steps["own"] in (6, 7)


def test_two_processes_share_out_what_is_written(places: Path, tmp_path: Path, monkeypatch) -> None:
    """And agree on how long they train, whatever each has measured."""
    from prunekit.recovery import lessons
    from prunekit.recovery.training.trial import Trial

    monkeypatch.setattr(lessons, "run_trial", lambda *given: Trial(10_000.0, None))
    monkeypatch.setattr(own_text, "writing_speed", lambda *given, **more: 2500.0 + 10_000 * ranks.rank())

    def work() -> None:
        with ranks.joined("cpu"):
            recover_tiny(places, tmp_path / "out", text="self", tokens=None, minutes=1 / 60)

    ended = run_ranks(2, work)
    assert [each.code for each in ended] == [0, 0], ended
    # T / 10,000 + T / (2 · 2,500) = 1 gives 3,333, were chunks (64 windows each, and a last one) shared out evenly.
    tokens = Plan.load(tmp_path / "out" / "plan.json").provenance["recovery"][0]["tokens"]
    assert 1_700 <= tokens <= 3_400


def test_a_few_steps_tell_how_fast_it_writes(places: Path, dense: DenseModel) -> None:
    """As fast as the same steps in full, but for what the machine does beside."""
    speed = writing_speed(dense, LENGTH, sequences=8)
    assert 10 < speed < 1e7
    calls: list[tuple[int, int]] = []

    def write(starts, length: int, seed: int):
        calls.append((len(starts), length))
        return starts.repeat(1, length)

    assert writing_speed(dense, 512, writer=Writer("fast", write)) > speed
    assert calls == [(CHUNK, 9)] * 2
