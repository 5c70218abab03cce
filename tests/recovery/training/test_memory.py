"""Where memory is too small: with several processes the training ends, and goes on with less at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.recovery.training.student import Student
from prunekit.utils.process import rank_group, ranks
from tests.support.ranks import run_ranks
from tests.support.recovering import recover_tiny

FULL = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"


def test_a_process_that_is_too_small_says_what_goes_on(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four sequences a step on two processes, the second of which takes one at a time after a while."""
    out = tmp_path / "out"
    original = Student.hidden
    calls = []

    def hidden(student: Student, windows):
        calls.append(windows)
        if ranks.rank() == 1 and len(calls) > 12 and len(windows.ids) > 1:
            raise RuntimeError(FULL)
        return original(student, windows)

    def work(settings: dict) -> None:
        with ranks.joined("cpu"):
            recover_tiny(places, out, checkpoint_minutes=0, settings=settings)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "hidden", hidden)
        # The first process waits inside a layer, and so takes no notice.
        patch.setattr(rank_group, "_NOTICE", 0.5)
        ended = run_ranks(2, lambda: work({}))
        assert all(each.code for each in ended), ended
        said = "The memory of process 1 is too small for 2 sequences at a time. Give the same command again with "
        assert said + "--set micro_batch=1: it goes on from the last checkpoint" in ended[1].err
        kept = [int(each.name[5:]) for each in (tmp_path / "out.training").glob("step-*")]
        assert kept and max(kept) < 8
        ended = run_ranks(2, lambda: work({"micro_batch": 1}))
        assert [each.code for each in ended] == [0, 0], ended
    assert (out / "config.json").is_file()
