"""The best weights of a training: kept whatever comes after, and never taken where they have changed on the disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.data.token_file import open_text
from prunekit.errors import PrunekitError
from prunekit.models.source import load_model, resolve
from prunekit.recovery.lessons import Lessons, Trained
from prunekit.recovery.training.loop import Training
from prunekit.recovery.training.progress import Listener
from tests.support.recovering import killed_before, make_places, recover_tiny

pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_places(tmp_path_factory.mktemp("best"))


@contextmanager
def held_out(*kl: float) -> Iterator[None]:
    """What each measurement on held-out text in turn comes to; after the last of them, what it is."""
    original, left = Training.look, [*kl]

    def look(self: Training) -> dict[str, float]:
        made = original(self)
        return {**made, "kl": left.pop(0)} if left else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "look", look)
        yield


def _add(checkpoint: Path, amount: float) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: each + amount for name, each in weights.items()}, checkpoint / "model.safetensors")


def _cut_off(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


DAMAGE = {"changed": lambda path: _add(path, 0.001), "cut off": _cut_off, "gone": shutil.rmtree}


def _unfinished(places: Path, out: Path) -> Path:
    """A training whose best step, 4, and last step, 7, are kept. Returns the folder of its checkpoints."""
    with held_out(9.0, 8.0, 7.0, 1.0, 6.0), killed_before(8):
        recover_tiny(places, out, checkpoint_minutes=0, tokens=64 * 9)
    folder = out.with_name("out.training")
    assert "step-00000005" in [each.name for each in folder.iterdir()]
    return folder


@pytest.mark.parametrize("how", DAMAGE)
def test_the_best_weights_are_not_taken_where_they_have_changed(how: str, places: Path, tmp_path: Path) -> None:
    folder = _unfinished(places, tmp_path / "out")
    DAMAGE[how](folder / "step-00000005")
    notes: list[str] = []
    made = recover_tiny(places, tmp_path / "out", tokens=64 * 9, listener=Listener(note=notes.append))
    assert any("The weights of step 5, the best so far, are lost" in note for note in notes)
    assert made.used not in (0, 5) and made.after < made.before


@pytest.mark.parametrize("how", DAMAGE)
def test_nor_where_they_change_at_the_end(
    how: str, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk may while the last step is made: then the last step's weights are written."""
    original = Trained.finish

    def spoiled(self: Trained, *given: Any) -> Any:
        DAMAGE[how](self.kept.checkpoint(int(self.training.standing.best["step"])))
        return original(self, *given)

    monkeypatch.setattr(Trained, "finish", spoiled)
    notes: list[str] = []
    with held_out(9.0, 8.0, 7.0, 1.0, 6.0, 5.0, 5.0):
        made = recover_tiny(places, tmp_path / "out", tokens=64 * 9, listener=Listener(note=notes.append))
    assert made.used == 9
    assert any("could not be read" in note and "weights of step 9, the last one, are written" in note for note in notes)


def test_a_loss_that_is_no_number_leaves_the_best_and_says_where(places: Path, tmp_path: Path) -> None:
    with held_out(9.0, 8.0, 7.0, 1.0, math.nan), pytest.raises(PrunekitError) as ended:
        recover_tiny(places, tmp_path / "out", tokens=64 * 9)
    said = str(ended.value)
    assert "The held-out loss is not finite after step 7. Begin anew with a lower rate" in said
    assert "--dtype float32" not in said, "it was computed in that"
    place = tmp_path / "out.training" / "step-00000005"
    assert f"The weights of step 5, the best so far, are a model like any other: move {place} away" in said
    assert load_model(resolve(str(place)), device="cpu").lm_head.weight.isfinite().all()


def test_what_deleting_is_said_to_bring_it_brings(places: Path, tmp_path: Path) -> None:
    """A state of another version is told with what to delete, and doing so goes on or begins anew."""
    folder = _unfinished(places, tmp_path / "out")
    last = max(folder.glob("step-*"))
    path = last / "training" / "state.json"
    said = json.loads(path.read_text())
    said["standing"]["colour"] = "red"
    path.write_text(json.dumps(said))
    from tests.recovery.training.test_run import _rewrite_state

    _rewrite_state(last)
    with pytest.raises(PrunekitError, match=r"no state of a training .* Delete .*step-00000\d+ to go on") as ended:
        recover_tiny(places, tmp_path / "out", tokens=64 * 9)
    assert str(last) in str(ended.value)
    shutil.rmtree(last)
    assert recover_tiny(places, tmp_path / "out", tokens=64 * 9).standing.step == 9


def test_the_first_loss_is_that_of_the_folder(places: Path, tmp_path: Path) -> None:
    """A training whose weights were never loaded would begin with another."""
    with killed_before(1):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0)
    text = open_text(tmp_path / "out.training" / "text")
    ids = text.batch(0, 4).ids
    dense, pruned = (load_model(resolve(str(places / name)), device="cpu") for name in ("dense", "small"))
    with torch.no_grad():
        first, second = (each(input_ids=ids).logits.log_softmax(-1) for each in (dense, pruned))
        ce = pruned(input_ids=ids, labels=ids).loss.item()
    row = recover_tiny(places, tmp_path / "out").standing.steps[0]
    assert row["loss"] == pytest.approx(ce, rel=1e-5)
    assert row["kl"] == pytest.approx((first.exp() * (first - second)).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("train", ["blocks", "all"])
def test_tied_weights_are_one_after_load_and_when_a_run_goes_on(
    train: str, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    original = Lessons._begin

    def begin(self: Lessons, made: Any, *given: Any) -> Any:
        standing = original(self, made, *given)
        model = made.student.model
        seen.append(model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        return standing

    monkeypatch.setattr(Lessons, "_begin", begin)
    with killed_before(3):
        recover_tiny(places, tmp_path / "out", checkpoint_minutes=0, settings={"train": train})
    recover_tiny(places, tmp_path / "out", checkpoint_minutes=0, settings={"train": train})
    assert seen == [True, True]
