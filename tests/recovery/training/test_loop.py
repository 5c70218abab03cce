from __future__ import annotations

import copy
import math

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.training.loop import Events
from prunekit.recovery.training.progress import Standing
from tests.support.tiny import MODEL_TYPES
from tests.support.tiny_training import RandomText, tiny_pair, tiny_teacher, tiny_training


def _weights(training) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in training.student.parameters.items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_training_brings_the_model_nearer_on_held_out_text(model_type: str) -> None:
    dense, pruned = tiny_pair(model_type)
    training = tiny_training(dense, pruned, steps=12)
    training.run()
    held = training.standing.held_out
    assert [row["step"] for row in held] == [0, 2, 3, 6, 9, 12]
    assert held[-1]["kl"] < held[0]["kl"]
    assert training.standing.tokens == 12 * 4 * 16


def test_the_first_loss_is_that_of_the_model_as_it_was_loaded() -> None:
    dense, pruned = tiny_pair()
    rows: list[dict[str, float]] = []
    training = tiny_training(dense, pruned, steps=1, events=Events(on_step=lambda row, seconds: rows.append(row)))
    training.run()
    ids = RandomText().batch(0, 4).ids
    with torch.no_grad():
        ce = pruned(input_ids=ids, labels=ids).loss.item()
        first, second = (each(input_ids=ids).logits.log_softmax(-1) for each in (dense, pruned))
    assert rows[0]["loss"] == pytest.approx(ce, rel=1e-5)
    assert rows[0]["kl"] == pytest.approx((first.exp() * (first - second)).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "config", [TrainingConfig(learning_rate=1e-3), TrainingConfig(learning_rate=1e-3, ce_share=0.4)]
)
def test_what_is_computed_at_a_time_changes_nothing(config: TrainingConfig) -> None:
    dense, pruned = tiny_pair()
    made = []
    for micro_batch in (4, 2, 1):
        training = tiny_training(dense, pruned, config, steps=1, micro_batch=micro_batch)
        training._step()
        made.append({name: each.grad.clone() for name, each in training.student.parameters.items()})
    for other in made[1:]:
        for name, expected in made[0].items():
            assert (other[name] - expected).abs().max() <= 2e-6 * max(1e-3, expected.abs().max().item()), name


@pytest.mark.parametrize("train", ["blocks", "all"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_that_should_moves_and_no_other(tied: bool, train: str) -> None:
    dense, pruned = tiny_pair(tied=tied)
    training = tiny_training(dense, pruned, TrainingConfig(learning_rate=1e-3, train=train), steps=2)
    before = copy.deepcopy(training.student.model.state_dict())
    training.run()
    after = training.student.model.state_dict()
    fixed = set() if train == "all" else {"model.embed_tokens.weight", "lm_head.weight"}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (name in fixed), name
    model = training.student.model
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied


@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_that_goes_on_ends_bit_for_bit_as_one_that_did_not_stop(stop: int) -> None:
    dense, pruned = tiny_pair()
    whole = tiny_training(dense, pruned, steps=5)
    whole.run()

    class Killed(Exception):
        pass

    def save(why: str) -> None:
        if first.standing.step == stop:
            raise Killed

    first = tiny_training(dense, pruned, steps=5, events=Events(save=save, due=lambda: True))
    with pytest.raises(Killed):
        first.run()
    kept = {name: each.clone() for name, each in first.optimizer.moments().items()}
    standing = Standing(**copy.deepcopy(first.standing.to_dict()))
    second = tiny_training(dense, first.student.model, steps=5, standing=standing)
    second.optimizer.load(kept, standing.updates)
    second.run()
    for name, expected in _weights(whole).items():
        assert torch.equal(_weights(second)[name], expected), name
    assert second.standing.steps == whole.standing.steps
    assert second.standing.held_out == whole.standing.held_out


def test_recomputed_activations_change_nothing() -> None:
    dense, pruned = tiny_pair()
    made = []
    for recompute in (False, True):
        training = tiny_training(dense, pruned, steps=2)
        training.student.recompute = recompute
        training.run()
        made.append(_weights(training))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


class _Broken:
    """A teacher whose hidden states are NaN for so many steps."""

    def __init__(self, teacher, steps: int):
        self._teacher, self._left, self.head = teacher, steps, teacher.head
        self.measuring = True

    def target(self, windows):
        made = self._teacher.target(windows)
        # Held-out text has three windows.
        if len(windows.ids) != 3 and self._left:
            self._left -= 1
            made.hidden.fill_(math.nan)
        return made


def test_a_step_that_is_not_finite_moves_nothing_and_three_in_a_row_end_it() -> None:
    dense, pruned = tiny_pair()
    notes: list[str] = []
    training = tiny_training(dense, pruned, steps=6, events=Events(note=notes.append))
    training._gradient._teacher = _Broken(tiny_teacher(dense), 2)
    before = _weights(training)
    training.measure()
    row = training._step()
    assert row["skipped"] and row["kl"] is None
    assert all(torch.equal(before[name], each) for name, each in _weights(training).items())
    training.run()
    assert training.standing.updates == 4 and training.standing.step == 6
    assert len(notes) == 2
    hopeless = tiny_training(dense, pruned, steps=6)
    hopeless._gradient._teacher = _Broken(tiny_teacher(dense), 99)
    with pytest.raises(PrunekitError, match="3 steps in a row were not finite"):
        hopeless.run()


class _Small:
    """A student whose memory takes so many sequences."""

    def __init__(self, student, most: int):
        self._student, self._most = student, most

    def __getattr__(self, name: str):
        return getattr(self._student, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._student, name, value)

    def hidden(self, windows):
        if len(windows.ids) > self._most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return self._student.hidden(windows)


def test_a_batch_that_does_not_fit_is_halved_and_said_and_changes_nothing() -> None:
    dense, pruned = tiny_pair()
    whole = tiny_training(dense, pruned, steps=2, micro_batch=1)
    whole.run()
    notes: list[str] = []
    training = tiny_training(dense, pruned, steps=2, events=Events(note=notes.append))
    training._gradient._student = _Small(training.student, 1)
    training.standing.held_out.append({"step": 0, "kl": 1.0, "loss": 1.0})
    training.run()
    assert training.standing.micro_batch == 1
    assert [note.split()[-2] for note in notes] == ["2", "1"]
    for name, expected in _weights(whole).items():
        assert torch.equal(_weights(training)[name], expected), name
    hopeless = tiny_training(dense, pruned, steps=2, events=Events(note=notes.append))
    hopeless._gradient._student = _Small(hopeless.student, 0)
    hopeless.standing.held_out.append({"step": 0, "kl": 1.0, "loss": 1.0})
    with pytest.raises(PrunekitError, match="One sequence does not fit"):
        hopeless.run()
    assert "computed a second time" in notes[-1]


def test_all_that_the_optimizer_takes_is_taken_before_the_first_step() -> None:
    """And the steps are those of an optimizer that makes its state in the first one."""
    dense, pruned = tiny_pair()
    late, early = (tiny_training(dense, pruned, steps=3) for _ in range(2))
    early.optimizer.begin()
    assert early.optimizer.moments() == {} == late.optimizer.moments()
    before = {id(each) for state in early.optimizer._adam.state.values() for each in state.values()}
    late.run()
    early.run()
    assert before == {id(each) for state in early.optimizer._adam.state.values() for each in state.values()}
    for name, expected in {**_weights(late), **late.optimizer.moments()}.items():
        assert torch.equal({**_weights(early), **early.optimizer.moments()}[name], expected), name


def test_moments_that_do_not_fit_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    training = tiny_training(*tiny_pair())

    def full(*given: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "zeros_like", full)
    with pytest.raises(PrunekitError, match=r"two moments of each don't fit into memory.*lora=16"):
        training.optimizer.begin()
