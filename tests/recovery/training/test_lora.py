"""Adapters as what is trained: what moves, what is written, going on, and without peft."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.errors import PrunekitError
from prunekit.models.source import load_model, resolve
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.lessons import Trained
from prunekit.recovery.training.loop import Training
from prunekit.recovery.training.lora import LoraStudent
from tests.support.recovering import killed_before, recover_tiny
from tests.support.tiny import MODEL_TYPES
from tests.support.tiny_training import RandomText, tiny_pair, tiny_student, tiny_training

pytest.importorskip("peft")
LORA = TrainingConfig(learning_rate=3e-3, lora=4)
SETTINGS = {"lora": 4, "learning_rate": 3e-3}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_adapters_alone_move_and_bring_the_model_nearer(model_type: str) -> None:
    dense, pruned = tiny_pair(model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training = tiny_training(dense, pruned, LORA, steps=12)
    student = training.student
    before = {name: each.clone() for name, each in student.model.state_dict().items()}
    training.run()
    for name, each in student.model.state_dict().items():
        assert torch.equal(each, before[name]) == (".lora_" not in name), name
    held = training.standing.held_out
    assert held[-1]["kl"] < held[0]["kl"]
    linear = [each for each in pruned.model.layers.modules() if isinstance(each, torch.nn.Linear)]
    assert sum(each.numel() for each in student.parameters.values()) == sum(
        4 * (each.in_features + each.out_features) for each in linear
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_merged_weights_compute_what_the_adapters_did(model_type: str, tmp_path: Path) -> None:
    dense, pruned = tiny_pair(model_type, bias=True)
    training = tiny_training(dense, pruned, LORA, steps=3)
    training.run()
    student = training.student
    ids = RandomText().batch(50, 2).ids
    with torch.no_grad():
        expected = student.model(input_ids=ids).logits
        weights = {name: each.clone() for name, each in student.weights().items()}
        plain = copy.deepcopy(pruned)
        plain.load_state_dict(weights)
        assert set(weights) == set(pruned.state_dict())
        assert (plain(input_ids=ids).logits - expected).abs().max() < 1e-4 * expected.abs().max()
        source = type("Stored", (), {"dtype": torch.float32})
        student.round_to("auto", source)  # type: ignore[arg-type]
        assert torch.equal(student.model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert all(torch.equal(each, weights[name]) for name, each in student.weights().items())


def test_the_first_step_starts_from_the_model_that_was_given() -> None:
    dense, pruned = tiny_pair()
    plain, adapted = (tiny_training(dense, pruned, config, steps=1) for config in (TrainingConfig(), LORA))
    assert plain.measure() == adapted.measure()
    one, other = (tiny_student(copy.deepcopy(pruned), LORA).adapters() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_recomputed_activations_change_nothing() -> None:
    dense, pruned = tiny_pair()
    made = []
    for recompute in (False, True):
        training = tiny_training(dense, pruned, LORA, steps=2)
        training.student.recompute = recompute
        training.run()
        made.append({name: each.clone() for name, each in training.student.adapters().items()})
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_the_written_folder_gives_the_logits_of_the_model_in_memory(places, tmp_path, monkeypatch) -> None:
    kept = {}
    original = Trained.finish

    def keeping(trained, *rest):
        made = original(trained, *rest)
        with torch.no_grad():
            kept["logits"] = trained.training.student.model(input_ids=torch.arange(3, 40)[None]).logits.clone()
        return made

    monkeypatch.setattr(Trained, "finish", keeping)
    made = recover_tiny(places, tmp_path / "out", settings=SETTINGS)
    assert made.used and made.after < made.before
    model = load_model(resolve(str(tmp_path / "out")), device="cpu")
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.arange(3, 40)[None]).logits, kept["logits"])
    given, own = (load_file(path / "model.safetensors") for path in (places / "small", tmp_path / "out"))
    assert set(own) == set(given)


@pytest.mark.parametrize("worse_from", [None, 5])
def test_a_stopped_training_goes_on_bit_for_bit(places, tmp_path, monkeypatch, worse_from) -> None:
    """Also where an earlier step than the last is the best, so that its merged weights are read again."""
    measure = Training.measure

    def measured(self):
        row = measure(self)
        if worse_from is not None and row["step"] >= worse_from:
            row["kl"] += 10
        return row

    monkeypatch.setattr(Training, "measure", measured)
    whole = recover_tiny(places, tmp_path / "whole", settings=SETTINGS)

    for step in (3, 6):
        with killed_before(step):
            recover_tiny(places, tmp_path / "out", settings=SETTINGS, checkpoint_minutes=0)
    (last,) = sorted((tmp_path / "out.training").glob("step-*"))[-1:]
    load_model(resolve(str(last)), device="cpu")
    made = recover_tiny(places, tmp_path / "out", settings=SETTINGS, checkpoint_minutes=0)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert made.standing.steps == whole.standing.steps and made.used == whole.used
    assert 0 < made.used < (worse_from or 9)


def test_what_is_not_better_is_not_written(places, tmp_path) -> None:
    made = recover_tiny(places, tmp_path / "out", settings={"lora": 4, "learning_rate": 1.0, "clip": 1e3})
    assert made.used == 0 and made.after == made.before
    own, given = (load_file(path / "model.safetensors") for path in (tmp_path / "out", places / "small"))
    assert all(torch.equal(own[name], given[name]) for name in given)


def test_adapters_that_are_missing_are_told(tmp_path: Path) -> None:
    _, pruned = tiny_pair()
    student = tiny_student(pruned, LORA)
    assert isinstance(student, LoraStudent)
    kept = student.adapters()
    kept.popitem()
    with pytest.raises(PrunekitError, match="lacks the adapter"):
        student.load(tmp_path, kept)


def test_without_peft_a_sentence_says_what_to_install(places, tmp_path, monkeypatch) -> None:
    from prunekit.recovery.training import lora

    monkeypatch.setattr(lora, "installed", lambda package: None)
    with pytest.raises(PrunekitError, match=r"need the package peft: pip install '\.\[lora\]'"):
        recover_tiny(places, tmp_path / "out", settings=SETTINGS)
    assert not list(tmp_path.iterdir())
