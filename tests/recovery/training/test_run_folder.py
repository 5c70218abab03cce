"""The folder of a training: appears whole, goes at once, and not without its result."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from prunekit.errors import PrunekitError
from prunekit.recovery.training.run_folder import RunFolder, end, look, run_folder
from prunekit.utils.files.leftovers import discard, free_name
from tests.support.recovering import recover_tiny

ASKED = {"budget": {"tokens": 5}}


def begin(place: Path, plan: str | None = None) -> Path:
    """An unfinished training with a checkpoint, whose result has the plan of that digest."""
    path = place / "out.training"
    with pytest.raises(KeyboardInterrupt), run_folder(path, ASKED) as folder:
        folder.settle(steps=3, plan=plan)
        folder.checkpoint(1).mkdir()
        raise KeyboardInterrupt
    return path


def result(place: Path, text: str = "plan") -> str:
    """A folder with a plan in it; its digest."""
    import hashlib

    (place / "out").mkdir()
    (place / "out" / "plan.json").write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_training_goes_where_its_result_is_there(tmp_path: Path) -> None:
    path = begin(tmp_path, plan=result(tmp_path))
    end(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_another_result_leaves_it(tmp_path: Path) -> None:
    result(tmp_path)
    for plan in (None, "0" * 64):
        path = begin(tmp_path, plan=plan)
        end(path, tmp_path / "out")
        found = look(path)
        assert found is not None and found.checkpoints() == [1] and found.settled["steps"] == 3
        shutil.rmtree(path)
    end(path, tmp_path / "none")


def test_it_is_not_taken_from_a_run_that_works_there(tmp_path: Path) -> None:
    digest = result(tmp_path)
    path = tmp_path / "out.training"
    with run_folder(path, ASKED) as folder:
        folder.settle(plan=digest)
        with pytest.raises(PrunekitError, match="Another process trains"):
            end(path, tmp_path / "out")
        folder.checkpoint(1).mkdir()
    assert look(path) is not None


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_another_training_does_not_replace_one_that_runs(tmp_path: Path, begun: bool, overwrite: bool) -> None:
    """Not with --overwrite, and not while it has no checkpoint, packing its text for instance."""
    path = tmp_path / "out.training"
    with run_folder(path, ASKED) as folder:
        folder.settle(steps=3)
        (folder.checkpoint(1) if begun else folder.text).mkdir()
        with (
            pytest.raises(PrunekitError, match="Another process trains"),
            run_folder(path, {"budget": {"tokens": 6}}, overwrite),
        ):
            pass
        found = look(path)
        assert found is not None and found.asked == ASKED and found.settled["steps"] == 3
        assert sorted(each.name for each in path.iterdir()) == ["run.json", "step-00000001" if begun else "text"]
    # It is over, and then it may be replaced.
    with run_folder(path, {"budget": {"tokens": 6}}, overwrite=True) as folder:
        assert folder.settled == {} and folder.checkpoints() == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_training_that_was_replaced_meanwhile_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Between looking and locking another process throws it away and begins its own."""
    from prunekit.recovery.training import run_folder as module

    path = begin(tmp_path)
    original, other = module._alone, {"budget": {"tokens": 6}}

    def late(place: Path) -> AbstractContextManager[None]:
        monkeypatch.setattr(module, "_alone", original)
        with pytest.raises(KeyboardInterrupt), run_folder(path, other, overwrite=True) as folder:
            folder.checkpoint(2).mkdir()
            raise KeyboardInterrupt
        return original(place)

    monkeypatch.setattr(module, "_alone", late)
    with pytest.raises(PrunekitError, match="began another training"), run_folder(path, ASKED, overwrite):
        pass
    found = look(path)
    assert found is not None and found.asked == other and found.checkpoints() == [2]


def test_what_is_written_down_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are on the disk before the name is theirs."""
    from prunekit.utils.files import atomic

    synced: list[str] = []
    original, replaced = os.fsync, os.replace

    def sync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        original(handle)

    def replace(given: Path, name: Path) -> None:
        assert given.name in synced
        replaced(given, name)
        synced.append(f"named {name.name}")

    with run_folder(tmp_path / "out.training", ASKED) as folder:
        monkeypatch.setattr(atomic.os, "fsync", sync)
        monkeypatch.setattr(atomic.os, "replace", replace)
        folder.settle(steps=3)
        folder.conclude(1, {"used": 0})
    named = [each for each in synced if each.startswith("named") or each == "out.training"]
    assert named == ["named run.json", "out.training", "named stage-01.json", "out.training"]


def test_what_a_killed_removal_left_is_swept(tmp_path: Path) -> None:
    path = begin(tmp_path)
    shutil.copytree(path, free_name(tmp_path, path.name))
    shutil.copytree(path / "step-00000001", free_name(path, "step-00000001"))
    end(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["out.training"]
    with run_folder(path, ASKED) as folder:
        assert folder.settled["steps"] == 3
        assert sorted(each.name for each in path.iterdir()) == ["run.json", "step-00000001"]


def test_what_is_removed_loses_its_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.utils.files import leftovers

    seen: list[list[str]] = []
    monkeypatch.setattr(leftovers, "erase", lambda path: seen.append([each.name for each in tmp_path.iterdir()]))
    (tmp_path / "folder").mkdir()
    discard(tmp_path / "folder")
    assert len(seen) == 1 and seen[0][0].startswith(".folder.prunekit-new-") and len(seen[0]) == 1


def test_other_trainings_and_others_folders_are_no_training(tmp_path: Path) -> None:
    assert look(tmp_path) is None
    (tmp_path / "run.json").write_text('{"format": "prunekit-training", "version": 2, "asked": {}, "settled": {}}')
    assert look(tmp_path) is None
    assert isinstance(look(begin(tmp_path)), RunFolder)


def test_the_next_run_of_a_finished_training_takes_it_away(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "erase", lambda folder: None)  # as where the run is killed before
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    assert look(tmp_path / "out.training") is not None
    with pytest.raises(PrunekitError, match="already exists"):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
