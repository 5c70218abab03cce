"""What is said of a training: by the model card, by `prunekit inspect`, and of one that is not finished."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from prunekit.checkpoint.history import trainings
from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.plan import Plan
from prunekit.recovery.lessons import Trained
from prunekit.recovery.training.loop import Training
from prunekit.recovery.training.progress import Listener
from prunekit.utils.files.hashes import sha256
from prunekit.utils.measuring import crowd
from tests.support.command import Command
from tests.support.recovering import killed_before, make_places, recover_tiny

pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """And "recovered", "same" (no step was better), "unfinished.training"."""
    root = make_places(tmp_path_factory.mktemp("told"))
    recover_tiny(root, root / "recovered")
    recover_tiny(root, root / "same", settings={"learning_rate": 1.0, "clip": 1e3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trained, "finish", lambda *given: (_ for _ in ()).throw(PrunekitError("enough")))
        with pytest.raises(PrunekitError, match="enough"):
            recover_tiny(root, root / "unfinished", checkpoint_minutes=0, seed=3, settings={"recompute": True})
    return root


def facts(folder: Path) -> dict:
    (told,) = Plan.load(folder / "plan.json").provenance["recovery"]
    return told


def test_the_card_tells_what_was_pruned_and_how_it_was_trained(places: Path) -> None:
    card = (places / "recovered" / "README.md").read_text(encoding="utf-8")
    kl = facts(places / "recovered")["held_out_kl"]
    assert "# dense, pruned and trained with prunekit" in card and ModelCard(card).data.tags[:2] == [
        "prunekit",
        "pruned",
    ]
    assert (
        f"| training | 512 tokens of text.txt toward dense; KL on held-out text {kl['before']:.4f} before, "
        f"{kl['after']:.4f} after |" in card
    )
    notice = card.partition("**Notice of modification**")[2]
    assert "this is not dense as it was published" in notice and "predictions of dense" in notice
    assert str(places) not in card


def test_the_card_of_what_did_not_get_better_says_so(places: Path) -> None:
    card = (places / "same" / "README.md").read_text(encoding="utf-8")
    assert "# dense, pruned with prunekit" in card and "no step had a lower loss on held-out text" in card
    assert "trained" not in card.partition("**Notice of modification**")[2]
    assert "# dense, pruned with prunekit" in (places / "small" / "README.md").read_text(encoding="utf-8")


def test_inspect_tells_of_trainings(command: Command, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = command("inspect", places / "recovered").out
    assert "512 tokens of text.txt toward dense; KL on held-out text" in shown and "as pruned and trained" in shown
    assert "adapt-pruner" in shown
    (told,) = command("inspect", places / "recovered", "--json").json["provenance"]["recovery"]
    assert told == facts(places / "recovered")
    shown = command("inspect", places / "same").out
    assert "the weights are those from before" in shown and "trained" not in shown.replace("trained on", "")
    assert "trained on" not in command("inspect", places / "small").out


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": "many"},
        {"teacher": "dense"},
        {"teacher": {"name": "a\nb"}},
        {"held_out_kl": {"after": "low"}},
        {"used_step": -1},
        7,
    ],
)
def test_a_history_that_prunekit_never_writes_is_refused(places: Path, tmp_path: Path, wrong: object) -> None:
    data = json.loads((places / "recovered" / "plan.json").read_text())
    history = data["provenance"]["recovery"]
    data["provenance"]["recovery"] = [{**history[0], **wrong} if isinstance(wrong, dict) else wrong]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PrunekitError, match=r"provenance\.recovery.* (prunekit never writes|no JSON object)"):
        Plan.load(tmp_path / "plan.json")


def test_a_history_that_says_little_is_shown_as_far_as_it_goes() -> None:
    plan = Plan.load(Path(__file__).parents[2] / "golden" / "written" / "plan.json")
    assert trainings(plan) == ()
    plan.provenance["recovery"] = [{"tokens": 5}, {}]
    assert [each.words() for each in trainings(plan)] == ["5 tokens", "0 tokens"]


def test_a_checkpoint_of_a_training_says_how_far_it_is(command: Command, places: Path) -> None:
    (step,) = sorted((places / "unfinished.training").glob("step-*"))[-1:]
    assert "448 tokens of text.txt toward dense so far (step 7 of 8)" in " ".join(
        command("inspect", step).out.replace("│", "").split()
    )
    assert "448 tokens of text.txt toward dense so far (step 7 of 8)" in (step / "README.md").read_text(
        encoding="utf-8"
    )


def test_inspect_of_a_training_that_is_not_finished(command: Command, places: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    data = command("inspect", places / "unfinished.training", "--json").json
    assert (data["model"], data["teacher"], data["steps"]) == ("small", "dense", 8)
    assert data["step"] == data["checkpoints"][-1]["step"] == 7 and data["tokens"] == 7 * 64
    assert data["held_out"][0]["step"] == 0 and "recompute" not in data["asked"]["settings"]
    shown = " ".join(command("inspect", places / "unfinished.training").out.split())
    best = min(data["held_out"], key=lambda row: row["kl"])
    assert data["best"] == best
    for said in (
        "a training that is not finished",
        "small toward dense",
        "step 7 of 8, 448 tokens",
        f"{data['held_out'][0]['kl']:.4f} before, {best['kl']:.4f} at step {best['step']}, the best so far",
        "files as written",
        data["command"],
    ):
        assert said in shown


def test_the_best_is_what_would_be_written(command: Command, places: Path, tmp_path: Path, monkeypatch) -> None:
    """By the training's own loss, of which the next tokens may be all."""
    monkeypatch.setattr(Training, "look", _rising_kl)
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", settings={"ce_share": 1.0}, checkpoint_minutes=0)
    data = command("inspect", tmp_path / "out.training", "--json").json
    assert [row["kl"] for row in data["held_out"]] == [1.0, 2.0, 3.0, 5.0]
    assert data["best"] == data["held_out"][-1]
    assert "1.0000 before, 5.0000 at step 4, the best so far" in " ".join(
        command("inspect", tmp_path / "out.training").out.split()
    )


def test_a_divergence_that_rose_is_told(places: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Training, "look", _rising_kl)
    notes: list[str] = []
    made = recover_tiny(
        places, tmp_path / "out", settings={"ce_share": 0.75}, listener=Listener(note=notes.append), tokens=64
    )
    assert (made.used, made.before, made.after) == (1, 1.0, 2.0)
    assert notes == [
        "KL from the dense model rose on held-out text, from 1.0000 to 2.0000: with ce_share=0.75 the step of least "
        "loss is written, and the text's own next tokens are a part of that."
    ]


def _rising_kl(training: Training) -> dict[str, float]:
    """The divergence rises with each step, and the loss falls faster."""
    step = training.standing.step
    return {"kl": 1.0 + step, "loss": 10.0 - step}


def test_the_command_that_it_names_goes_on(command: Command, places: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(places / "unfinished.training", tmp_path / "unfinished.training")
    named = command("inspect", tmp_path / "unfinished.training", "--json").json["command"]
    program, *words = shlex.split(named)
    assert program == "prunekit" and "--set" in words and "recompute=true" in words
    monkeypatch.chdir(places)
    done = command(*words, "--dtype", "float32", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["step"] for row in rows if "step" in row] == [7]
    assert (tmp_path / "unfinished" / "config.json").is_file() and not (tmp_path / "unfinished.training").exists()


def test_the_command_that_it_names_gives_the_same_result(
    command: Command, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = ("--store-dtype", "bfloat16", "--max-shard", "200KiB", "--checkpoint-minutes", "0")
    given = {"store_dtype": "bfloat16", "max_shard": "200KiB", "checkpoint_minutes": 0}
    resources = {"micro_batch": 2}
    recover_tiny(places, tmp_path / "whole", settings=resources, **given)
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", settings=resources, **given)
    named = shlex.split(command("inspect", tmp_path / "out.training", "--json").json["command"])
    assert all(pair in pairwise(named) for pair in zip(form[::2], form[1::2], strict=True))
    assert "micro_batch=2" in named and "--dtype" in named and "--layout" not in named
    monkeypatch.chdir(places)
    done = command(*named[1:], "--device", "cpu")
    assert done.code == 0 and "begun with" not in done.err, done.err
    one, other = ({each.name: sha256(each) for each in _weights(tmp_path / name)} for name in ("whole", "out"))
    assert one == other and len(one) > 1
    assert resolve(str(tmp_path / "out")).dtype == torch.bfloat16


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_another_form_than_it_was_begun_with_is_told(places: Path, tmp_path: Path) -> None:
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", store_dtype="bfloat16", checkpoint_minutes=0)
    notes: list[str] = []
    with killed_before(5):
        recover_tiny(places, tmp_path / "out", max_shard="3GB", listener=Listener(note=notes.append))
    told = (
        "This training was begun with {0}, and its result will be written with {1}. If you don't want that, stop it "
        "and give the same command with {0}: it goes on."
    )
    assert notes == [
        told.format("--store-dtype bfloat16", "--store-dtype auto"),
        told.format("--max-shard 2GiB", "--max-shard 3000000000B"),
    ]
    notes.clear()
    # It was stopped, and is what it was.
    recover_tiny(places, tmp_path / "out", store_dtype="bfloat16", listener=Listener(note=notes.append))
    assert notes == [] and resolve(str(tmp_path / "out")).dtype == torch.bfloat16


def test_a_damaged_training_is_told(command: Command, places: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(places / "unfinished.training", tmp_path / "a.training")
    (step,) = sorted(folder.glob("step-*"))[-1:]
    (step / "config.json").write_text("{}")
    done = command("inspect", folder)
    assert done.code == 2 and f"{step.name} is damaged: config.json changed" in done.err
    said = json.loads((folder / "run.json").read_text())
    for wrong in (
        {"asked": {}},
        {"asked": {**said["asked"], "settings": 3}},
        {"settled": {**said["settled"], "model": 3}},
        {"settled": {**said["settled"], "form": {"store_dtype": []}}},
        {"settled": {**said["settled"], "form": 3}},
        {"settled": {**said["settled"], "checkpoint_minutes": "ten"}},
        {"settled": {**said["settled"], "resources": 3}},
    ):
        (folder / "run.json").write_text(json.dumps({**said, **wrong}))
        done = command("inspect", folder)
        assert done.code == 2 and "Traceback" not in done.err, done


def test_a_training_without_a_checkpoint_yet(command: Command, places: Path, tmp_path: Path) -> None:
    (tmp_path / "a.training").mkdir()
    shutil.copy(places / "unfinished.training" / "run.json", tmp_path / "a.training")
    shown = command("inspect", tmp_path / "a.training").out
    assert "none yet" in shown and "step 0 of 8, 0 tokens" in shown


def test_other_programs_are_told_of_once(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "crowded", lambda load, threads: "Others want them too.")
    notes: list[str] = []
    recover_tiny(places, tmp_path / "out", listener=Listener(note=notes.append), tokens=64)
    assert notes.count("Others want them too.") == 1
