"""Rows that are kept: found again, after a kill too; damage, other kinds and full disks."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from prunekit.recovery.teachers import row_file
from prunekit.recovery.teachers.row_file import RowFile


def _key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def _filled(folder: Path, numbers: range, **given) -> RowFile:
    rows = RowFile(folder, "hidden", **given)
    for number in numbers:
        rows.add(_key(number), bytes([number]) * (number + 1))
    return rows


def test_what_was_added_is_found_at_once_and_after_a_flush_by_others(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "kept", range(5))
    assert [rows.read(_key(number)) for number in range(5)] == [bytes([n]) * (n + 1) for n in range(5)]
    assert rows.read(_key(9)) is None
    rows.flush()
    later = _filled(tmp_path / "kept", range(5, 8))
    later.flush()
    again = RowFile(tmp_path / "kept", "hidden")
    assert len(again) == 8 and all(again.read(_key(n)) == bytes([n]) * (n + 1) for n in range(8))


def test_what_was_not_flushed_is_gone_and_does_no_harm(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "kept", range(3))
    rows.flush()
    rows.add(_key(7), b"lost")
    killed = RowFile(tmp_path / "kept", "hidden")
    assert len(killed) == 3 and killed.read(_key(7)) is None
    killed.add(_key(8), b"new")
    killed.flush()
    assert RowFile(tmp_path / "kept", "hidden").read(_key(8)) == b"new"


def test_a_name_is_written_once(tmp_path: Path) -> None:
    rows = _filled(tmp_path / "kept", range(2))
    rows.add(_key(1), b"other")
    assert rows.read(_key(1)) == b"\1\1"


@pytest.mark.parametrize("spoil", ["cut", "garbage", "kind", "list lost"])
def test_what_is_damaged_or_of_another_kind_begins_anew(tmp_path: Path, spoil: str) -> None:
    _filled(tmp_path / "kept", range(4)).flush()
    if spoil == "cut":
        (tmp_path / "kept" / "rows.bin").write_bytes(b"\0")
    elif spoil == "garbage":
        (tmp_path / "kept" / "rows.safetensors").write_bytes(b"\xff" * 40)
    elif spoil == "list lost":
        (tmp_path / "kept" / "rows.safetensors").unlink()
    rows = RowFile(tmp_path / "kept", "sampled 50" if spoil == "kind" else "hidden")
    assert len(rows) == 0 and rows.read(_key(1)) is None
    rows.add(_key(1), b"new")
    assert rows.read(_key(1)) == b"new"


def test_a_disk_that_would_be_too_full_ends_the_keeping_with_a_sentence(tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    notes: list[str] = []
    rows = _filled(tmp_path / "kept", range(3), reserve=1000, note=notes.append)
    assert not notes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1003))
    rows.add(_key(10), b"1234")
    rows.add(_key(11), b"1")
    assert rows.full and rows.read(_key(10)) is None and rows.read(_key(11)) is None
    assert rows.read(_key(2)) == b"\2\2\2"
    (note,) = notes
    assert "nearly full" in note and "computed again" in note
    rows.flush()
    assert len(RowFile(tmp_path / "kept", "hidden")) == 3


def test_a_list_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    notes: list[str] = []
    rows = _filled(tmp_path / "kept", range(3), note=notes.append)
    monkeypatch.setattr(row_file, "rewrite_bytes", refuse)
    rows.flush()
    assert rows.full and "No space left" in notes[0]
    assert rows.read(_key(1)) == b"\1\1"
