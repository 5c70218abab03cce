"""The folder of a training: appears whole, goes at once, and not without its result."""

from __future__ import annotations

import shutil
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
