"""Windows that come again are read, those that come once are computed, and nothing but rounding changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunekit.recovery.teachers.forms import HiddenForm, SampledForm
from prunekit.recovery.teachers.held_out import HeldOutTeacher
from prunekit.recovery.teachers.kept import KeptTeacher
from prunekit.recovery.teachers.online import OnlineTeacher
from prunekit.recovery.teachers.row_file import RowFile
from tests.support.tiny import VOCAB
from tests.support.tiny_training import LENGTH, RandomText, tiny_pair, tiny_teacher

SIZE = 64
TEXT = RandomText()


class Counting(OnlineTeacher):
    """How many windows the dense model was asked about."""

    asked = 0

    def hidden(self, windows):
        self.asked += len(windows.ids)
        return super().hidden(windows)


@pytest.fixture
def online() -> Counting:
    teacher = tiny_teacher(tiny_pair()[0])
    teacher.__class__ = Counting
    return teacher


def _kept(online: OnlineTeacher, folder: Path, kind: str = "hidden", again=None) -> KeptTeacher:
    form = HiddenForm(online, SIZE) if kind == "hidden" else SampledForm(online, 5, VOCAB)
    return KeptTeacher(online, form, RowFile(folder, kind), online.keys(TEXT.batch(0, 8)) if again is None else again)


def _told(target, count: int) -> tuple[float, torch.Tensor]:
    own = torch.randn(count * LENGTH, VOCAB, generator=torch.Generator().manual_seed(5))
    kl, slope, _ = target.apart(0, own)
    return kl.item(), slope


@pytest.mark.parametrize("kind", ["hidden", "sampled"])
def test_the_second_time_is_read_and_is_the_first_bit_for_bit(online: Counting, tmp_path: Path, kind: str) -> None:
    teacher = _kept(online, tmp_path / "kept", kind)
    windows = TEXT.batch(0, 4)
    first = _told(teacher.target(windows), 4)
    assert online.asked == 4
    again = _told(teacher.target(windows), 4)
    assert online.asked == 4 and again[0] == first[0] and torch.equal(again[1], first[1])
    exact = _told(online.target(windows), 4)
    assert exact[0] == pytest.approx(first[0], rel=1e-2 if kind == "hidden" else 0.2)
    other = type(windows)(windows.ids.flip(0), windows.documents.flip(0))
    assert _told(teacher.target(other), 4)[0] != first[0]
    assert online.asked == 8  # four of them by the exact one


def test_a_later_process_reads_what_was_flushed(online: Counting, tmp_path: Path) -> None:
    teacher = _kept(online, tmp_path / "kept")
    windows = TEXT.batch(0, 4)
    first = _told(teacher.target(windows), 4)
    teacher._rows.flush()
    later = _told(_kept(online, tmp_path / "kept").target(windows), 4)
    assert online.asked == 4 and later[0] == first[0] and torch.equal(later[1], first[1])


def test_windows_that_come_once_are_told_exactly_and_not_kept(online: Counting, tmp_path: Path) -> None:
    windows = TEXT.batch(0, 4)
    keys = online.keys(windows)
    teacher = _kept(online, tmp_path / "kept", again={keys[0], keys[2]})
    exact, made = _told(online.target(windows), 4)[1], _told(teacher.target(windows), 4)[1]
    assert len(teacher._rows) == 2
    for place, kept in enumerate((True, False, True, False)):
        rows = slice(place * LENGTH, (place + 1) * LENGTH)
        error = (made[rows] - exact[rows]).abs().max()
        assert error < 1e-6 or kept, place
        assert (error > 1e-6) == kept
    assert torch.equal(_told(teacher.target(windows), 4)[1], made)
    once = TEXT.batch(4, 2)
    assert torch.equal(_told(teacher.target(once), 2)[1], _told(online.target(once), 2)[1])


def test_what_could_not_be_kept_is_computed_again_and_is_the_same(online: Counting, tmp_path: Path) -> None:
    teacher = _kept(online, tmp_path / "kept", "sampled")
    teacher._rows.full = True
    windows = TEXT.batch(0, 4)
    first, second = (_told(teacher.target(windows), 4) for _ in range(2))
    assert online.asked == 8 and first[0] == second[0] and torch.equal(first[1], second[1])


def test_what_is_not_finite_is_not_kept(online: Counting, tmp_path: Path, monkeypatch) -> None:
    teacher = _kept(online, tmp_path / "kept")
    windows = TEXT.batch(0, 2)
    hidden = online.hidden(windows)
    hidden[1, 3, 5] = torch.nan
    monkeypatch.setattr(online, "hidden", lambda windows: hidden)
    assert not _told(teacher.target(windows), 2)[1].isfinite().all()
    assert len(teacher._rows) == 1


def test_names_tell_windows_apart_by_documents_where_these_count() -> None:
    dense, _ = tiny_pair()
    windows = TEXT.batch(0, 2)
    other = type(windows)(windows.ids, windows.documents + torch.arange(LENGTH))
    joined, separate = tiny_teacher(dense), tiny_teacher(dense, separate=True)
    assert joined.keys(windows) == joined.keys(other) and len(set(joined.keys(windows))) == 2
    assert not set(separate.keys(windows)) & set(separate.keys(other))


def test_held_out_text_is_told_exactly_and_computed_once(online: Counting, tmp_path: Path) -> None:
    kept = _kept(online, tmp_path / "kept", "sampled")
    teacher = HeldOutTeacher(kept, online, TEXT.held_out, SIZE)
    expected = _told(online.target(TEXT.held_out), 3)
    online.asked = 0
    for _ in range(3):
        made = _told(teacher.target(TEXT.held_out), 3)
        assert made[0] == expected[0] and torch.equal(made[1], expected[1])
    one = type(TEXT.held_out)(TEXT.held_out.ids[1:2], TEXT.held_out.documents[1:2])
    alone = teacher.target(one)
    assert online.asked == 3 and len(kept._rows) == 0
    assert torch.allclose(alone.hidden, online.hidden(one)[0], atol=1e-5)
    trained = TEXT.batch(0, 2)
    assert torch.equal(_told(teacher.target(trained), 2)[1], _told(kept.target(trained), 2)[1])
    online.asked = 0
    large = HeldOutTeacher(kept, online, TEXT.held_out, SIZE, most=3 * LENGTH * SIZE * 4 - 1)
    for _ in range(2):
        assert _told(large.target(TEXT.held_out), 3)[0] == expected[0]
    assert online.asked == 6
