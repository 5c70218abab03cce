"""AdamW's moments after a cut: a step of what is left is the step of the dense model without what is gone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from prunekit.models.families import FAMILIES
from prunekit.models.slicing import LayerSlicer
from prunekit.plan import LayerKeep, Plan, whole_plan
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.stages.carry import cut_moments, new_projections
from prunekit.recovery.training.loop import Training
from tests.support.tiny import MODEL_TYPES, random_plan, rebuilt_model, tiny_model, zeroed_model
from tests.support.tiny_training import tiny_training
from tests.support.zeroing import LayerZeroer

pytestmark = pytest.mark.usefixtures("single_threaded")
families = pytest.mark.parametrize("model_type", MODEL_TYPES)
CONFIG = TrainingConfig(learning_rate=1e-3, train="all", clip=0.5)


def _other(model: Any) -> Any:
    """A dense model that was trained away from ``model``."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for place, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
            parameter.add_(0.05 * noise)
    return made


def _trained(model_type: str, **fields: Any) -> tuple[Any, Training]:
    """A dense model, and another one in training toward it, after two steps."""
    dense = tiny_model(model_type, **fields)
    training = tiny_training(dense, _other(dense), CONFIG, steps=8)
    training._step()
    training._step()
    return dense, training


def _shapes(model: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _goes_on(dense: Any, model: Any, moments: dict[str, torch.Tensor], updates: int) -> Training:
    training = tiny_training(dense, model, CONFIG, steps=8)
    training.optimizer.load(moments, updates)
    training.standing.updates, training.standing.step = updates, updates
    return training


def _by_layer(plan: Plan, tensors: dict[str, torch.Tensor], change: Any) -> dict[str, torch.Tensor]:
    """``tensors`` of the dense model's layers, each passed through ``change(keep)``."""
    made = dict(tensors)
    for keep in plan.layers:
        own = change(keep)
        start = f"model.layers.{keep.index}."
        made |= {name: own(name.removeprefix(start), each) for name, each in tensors.items() if name.startswith(start)}
    return made


@families
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_what_is_left_are_cut_as_moments_are(model_type: str, bias: bool) -> None:
    """Of norms over all heads (OLMo-2) too, whose weights a cut scales."""
    family = FAMILIES[model_type]
    dense, training = _trained(model_type, bias=bias)
    student = training.student.model
    plan = random_plan(family.shape(dense.config), seed=1)
    found = []
    for model in (rebuilt_model(student, plan), zeroed_model(student, plan)):
        other = tiny_training(dense, model, CONFIG, steps=8)
        other._gradient.put(training.text.batch(9, 2), 2)
        found.append({name: each.grad for name, each in other.student.parameters.items()})
    made = cut_moments({f"exp_avg.{name}": each for name, each in found[1].items()}, family, plan, {}, refitted=False)
    for name, expected in found[0].items():
        got = made[f"exp_avg.{name}"]
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item()), name
    squares = {f"exp_avg_sq.{name}": each.square() for name, each in found[1].items()}
    for name, got in cut_moments(squares, family, plan, {}, refitted=False).items():
        expected = found[0][name.removeprefix("exp_avg_sq.")].square()
        assert (got - expected).abs().max() <= 5e-5 * max(1.0, expected.abs().max().item()), name


@pytest.mark.parametrize("model_type", [each for each in MODEL_TYPES if not FAMILIES[each].wide_norms])
def test_a_cut_and_a_step_are_the_masked_dense_models_step(model_type: str) -> None:
    family = FAMILIES[model_type]
    dense, training = _trained(model_type)
    student, moments, updates = training.student.model, training.optimizer.moments(), training.optimizer.updates
    plan = random_plan(family.shape(dense.config), seed=2)
    cut = rebuilt_model(student, plan)
    carried = cut_moments(moments, family, plan, _shapes(cut), refitted=False)
    small = _goes_on(dense, cut, carried, updates)
    row = small._step()

    def zeroer(keep: LayerKeep) -> LayerZeroer:
        return LayerZeroer(family, plan.source, keep)

    kinds = ("exp_avg", "exp_avg_sq")
    named = {
        kind: {n.removeprefix(f"{kind}."): e for n, e in moments.items() if n.startswith(f"{kind}.")} for kind in kinds
    }
    masked = {f"{kind}.{name}": e for kind in kinds for name, e in _by_layer(plan, named[kind], zeroer).items()}
    large = _goes_on(dense, zeroed_model(student, plan), masked, updates)
    windows = large.text.batch(large.standing.step * 4, 4)
    large._gradient.put(windows, 4)
    gradients = _by_layer(plan, {name: each.grad for name, each in large.student.parameters.items()}, zeroer)
    for name, parameter in large.student.parameters.items():
        parameter.grad = gradients[name]
    norm = large.optimizer.step(large.span.rate(CONFIG, large.standing.step))
    assert row["norm"] == pytest.approx(norm, rel=1e-5) and norm > CONFIG.clip
    after = _by_layer(plan, dict(large.student.parameters), lambda keep: LayerSlicer(family, plan.source, keep))
    before = dict(cut.named_parameters())
    for name, got in small.student.parameters.items():
        moved = (got - before[name]).abs().max().item()
        assert moved > 0
        assert (got - after[name]).abs().max() <= 0.01 * moved, name


@families
def test_nothing_cut_is_nothing_changed_bit_for_bit(model_type: str) -> None:
    family = FAMILIES[model_type]
    dense, training = _trained(model_type)
    moments = {name: each.clone() for name, each in training.optimizer.moments().items()}
    student = copy.deepcopy(training.student.model)
    plan = whole_plan(family.shape(dense.config))
    carried = cut_moments(moments, family, plan, _shapes(student), refitted=True)
    assert set(carried) == set(moments) and all(torch.equal(carried[name], moments[name]) for name in moments)
    other = _goes_on(dense, rebuilt_model(student, plan), carried, 2)
    rows = [training._step(), other._step()]
    assert rows[0] == rows[1]
    for name, expected in training.student.parameters.items():
        assert torch.equal(other.student.parameters[name], expected), name


def test_layers_that_are_gone_take_their_moments_along_and_the_others_move_up() -> None:
    dense, training = _trained("llama")
    moments = training.optimizer.moments()
    plan = random_plan(FAMILIES["llama"].shape(dense.config), drop=(0, 2))
    cut = rebuilt_model(training.student.model, plan)
    made = cut_moments(moments, FAMILIES["llama"], plan, _shapes(cut), refitted=False)
    assert {name.partition(".")[2] for name in made} == {name for name, _ in cut.named_parameters()}
    assert torch.equal(
        made["exp_avg.model.layers.1.mlp.down_proj.weight"],
        moments["exp_avg.model.layers.3.mlp.down_proj.weight"][:, list(plan.layers[1].ffn)],
    )
    _goes_on(dense, cut, made, 2)._step()


def test_a_refit_projection_forgets_its_gradients_mean_and_keeps_the_mean_square() -> None:
    family = FAMILIES["llama"]
    dense, training = _trained("llama")
    shape = family.shape(dense.config)
    whole = [LayerKeep.everything(index, layer) for index, layer in enumerate(shape.layers)]
    narrow = LayerKeep(1, whole[1].kv_heads, whole[1].query_heads, whole[1].ffn[:40])
    plan = Plan(shape, (whole[0], narrow, whole[3]))
    # From the first sub-layer on that lost inputs: the FFN of layer 1.
    names = {
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.3.self_attn.o_proj.weight",
        "model.layers.3.mlp.down_proj.weight",
    }
    assert {name for name in new_projections(family, plan) if name.endswith("weight")} == names
    moments = training.optimizer.moments()
    plain, made = (cut_moments(moments, family, plan, {}, refitted=refitted) for refitted in (False, True))
    stale = {name for name in made if not torch.equal(made[name], plain[name])}
    assert stale == {
        "exp_avg.model.layers.1.mlp.down_proj.weight",
        "exp_avg.model.layers.2.self_attn.o_proj.weight",
        "exp_avg.model.layers.2.mlp.down_proj.weight",
    }
    assert not any(made[name].any() for name in stale)


def test_what_was_not_there_before_begins_at_zero() -> None:
    dense, training = _trained("llama")
    plan = whole_plan(FAMILIES["llama"].shape(dense.config))
    bias = "model.layers.2.mlp.down_proj.bias"
    shapes = {**_shapes(dense), bias: torch.Size([64])}
    made = cut_moments(training.optimizer.moments(), FAMILIES["llama"], plan, shapes, refitted=False)
    assert all(not made[f"{kind}.{bias}"].any() for kind in ("exp_avg", "exp_avg_sq"))
    assert not any("rotary" in name for name in made)
    assert cut_moments({}, FAMILIES["llama"], plan, shapes, refitted=False) == {}
