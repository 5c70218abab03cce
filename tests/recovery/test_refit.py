from __future__ import annotations

import copy

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.slicing import cut_layer
from prunekit.models.sublayers import KINDS
from prunekit.plan import LayerKeep, Plan, whole_plan
from prunekit.recovery.refit import RefitConfig, _Walk, refit
from tests.support.tiny import MODEL_TYPES, VOCAB, random_plan, rebuilt_model, tiny_model


def _ids(sequences=24, length=32, seed=0):
    return torch.randint(0, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _refitted(model, family, plan, ids, config=None):
    pruned = rebuilt_model(model, plan)
    made = refit(copy.deepcopy(model), family, plan.source, plan.layers, ids, config)
    state = pruned.state_dict()
    places = {keep.index: place for place, keep in enumerate(plan.layers)}
    for name, weight in made.weights.items():
        _, _, index, rest = name.split(".", 3)
        state[f"model.layers.{places[int(index)]}.{rest}"].copy_(weight)
    return pruned, made


def _kl(model, pruned, ids):
    with torch.no_grad():
        dense, other = (each(input_ids=ids).logits.log_softmax(-1) for each in (model, pruned))
    return (dense.exp() * (dense - other)).sum(-1).mean().item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_refitting_brings_a_pruned_model_closer(model_type, bias):
    model = tiny_model(model_type, bias=bias)
    family = FAMILIES[model_type]
    plan = random_plan(family.shape(model.config))
    pruned, _ = _refitted(model, family, plan, _ids(64))
    other = _ids(seed=1)
    assert _kl(model, pruned, other) < _kl(model, rebuilt_model(model, plan), other)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_kept_units_give_what_the_cut_layer_gives(model_type):
    """They are read off the dense layer where that is possible, in the order of the cut one's."""
    model = tiny_model(model_type)
    family = FAMILIES[model_type]
    plan = random_plan(family.shape(model.config))
    walk = _Walk(model, family, plan.source, _ids(2), 2)
    parts = walk.parts
    with torch.no_grad():
        for keep in plan.layers:
            dense = parts.layers[keep.index]
            cut = cut_layer(model, family, plan.source, dense, keep)
            for kind in KINDS:
                hidden = walk.pruned[0]
                kept = walk._kept(keep, keep.index, kind)
                z, same = walk._inputs_and_same(dense, cut, keep.index, kind, hidden, True, kept)
                own, _ = parts.run(cut, keep.index, kind, parts.normed(cut, kind, hidden))
                _, whole = parts.run(dense, keep.index, kind, parts.normed(dense, kind, hidden))
                torch.testing.assert_close(z, own)
                torch.testing.assert_close(same, whole)


def test_what_is_whole_stays_as_it_is():
    model = tiny_model("qwen2")
    plan = whole_plan(FAMILIES["qwen2"].shape(model.config))
    _, made = _refitted(model, FAMILIES["qwen2"], plan, _ids(4))
    assert len(made.weights) == len(model.model.layers.state_dict())
    for name, weight in made.weights.items():
        assert torch.equal(weight, model.get_parameter(name))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_model_that_was_handed_in_becomes_the_pruned_one(model_type):
    model = tiny_model(model_type)
    family = FAMILIES[model_type]
    plan = random_plan(family.shape(model.config))
    used = copy.deepcopy(model)
    made = refit(used, family, plan.source, plan.layers, _ids(8))
    pruned, _ = _refitted(model, family, plan, _ids(8))
    ids = _ids(2, seed=3)
    with torch.no_grad():
        assert torch.allclose(used(input_ids=ids).logits, pruned(input_ids=ids).logits, atol=1e-4)
    assert made.weights["model.layers.0.mlp.down_proj.weight"].shape[1] == len(plan.layers[0].ffn)


@pytest.mark.parametrize("towards", [0.0, 0.5, 1.0])
def test_channels_that_others_can_stand_in_for_cost_nothing(towards):
    """Every second FFN channel of a layer is a copy of the one before it."""
    model = tiny_model("llama")
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[1::2] = projection.weight[0::2]
    family = FAMILIES["llama"]
    shape = family.shape(model.config)
    layers = list(whole_plan(shape).layers)
    layers[1] = LayerKeep(1, layers[1].kv_heads, layers[1].query_heads, tuple(range(0, 96, 2)))
    plan = Plan(shape, tuple(layers))
    ids = _ids(32, 64)
    pruned, _ = _refitted(model, family, plan, ids, RefitConfig(towards, ridge=1e-7))
    assert _kl(model, pruned, ids) < 1e-5 < 1e-2 < _kl(model, rebuilt_model(model, plan), ids)


def test_dropped_layers_are_made_up_for():
    model = tiny_model("llama")
    family = FAMILIES["llama"]
    plan = random_plan(family.shape(model.config), drop=(1,))
    pruned, made = _refitted(model, family, plan, _ids(), RefitConfig(1.0))
    assert not any(name.startswith("model.layers.1.") for name in made.weights)
    other = _ids(seed=1)
    assert _kl(model, pruned, other) < _kl(model, rebuilt_model(model, plan), other)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"towards": 1.5}, "between 0 and 1"), ({"ridge": 0.0}, "above 0"), ({"ridge": 2e3}, "at most at 1000")],
)
def test_settings_are_checked(fields, said):
    with pytest.raises(PrunekitError, match=said):
        RefitConfig(**fields)
