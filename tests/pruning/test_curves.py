from __future__ import annotations

import copy

import pytest
import torch

from prunekit.models.families import FAMILIES
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import LayerShape
from prunekit.pruning.allocation import Problem
from prunekit.pruning.allocation.optimal import solve
from prunekit.pruning.curves.loss_curves import FfnCurve, HeadChoice, LayerCurves, ffn_curve, head_choices, layer_curves
from prunekit.pruning.curves.output_fisher import output_fisher
from prunekit.utils.numerics.least_squares import Elimination, Moments
from tests.support.tiny import MODEL_TYPES, VOCAB, tiny_model


def _ids(sequences=16, length=32, seed=0):
    return torch.randint(0, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _nothing(*args, **kwargs):
    pass


def _curves(model, model_type, ids):
    family = FAMILIES[model_type]
    fisher = output_fisher(model, family, ids, advance=_nothing)
    made = layer_curves(model, family, family.shape(model.config), ids, fisher, advance=_nothing)
    return [curves for _, curves, _ in made]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_curves_of_every_family(model_type):
    model = tiny_model(model_type)
    before = copy.deepcopy(model.state_dict())
    shape = FAMILIES[model_type].shape(model.config)
    curves = _curves(model, model_type, _ids())
    assert len(curves) == 4
    for index, curve in enumerate(curves):
        assert sorted(curve.ffn.order) == list(range(96))
        assert curve.ffn.loss[0] == 0 and list(curve.ffn.loss) == sorted(curve.ffn.loss)
        assert set(curve.heads) == {(kv, group) for kv in (1, 2, 3, 4) for group in (1, 2)}
        assert curve.heads[4, 2].loss == 0
        for kv, group in curve.heads:
            wanted = LayerShape(kv * group, kv, 50)
            keep = curve.keep(index, wanted)
            keep.check(shape.layers[index])
            assert keep.shape == wanted
        assert curve.heads[3, 2].loss < curve.heads[2, 2].loss < curve.heads[1, 1].loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loss_is_the_divergence_that_removal_brings():
    """One channel of one layer goes, the others of its projection are solved anew: the curve says what KL that is."""
    model = tiny_model("llama")
    ids = _ids(64)
    curve = _curves(model, "llama", ids)[1].ffn
    gone = 4
    family = FAMILIES["llama"]
    from prunekit.plan import LayerKeep, whole_plan
    from prunekit.recovery.refit import RefitConfig, refit

    shape = family.shape(model.config)
    layers = list(whole_plan(shape).layers)
    layers[1] = LayerKeep(1, layers[1].kv_heads, layers[1].query_heads, curve.kept(96 - gone))
    pruned = copy.deepcopy(model)
    refit(pruned, family, shape, tuple(layers), ids, RefitConfig(towards=0.0, ridge=1e-3))
    with torch.no_grad():
        dense, other = (each(input_ids=ids).logits.log_softmax(-1) for each in (model, pruned))
    kl = (dense.exp() * (dense - other)).sum(-1).mean().item()
    assert 0.5 < curve.loss[gone] / kl < 2


def test_heads_of_a_layer_that_nobody_reads_cost_nothing():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 24, generator=generator)
    weight = torch.randn(6, 24, generator=generator)
    weight[:, 8:12] = 0  # query head 2: the first of KV group 1
    weight[:, 16:24] = 0  # KV group 2
    moments = Moments(24, 6)
    moments.add(z, z @ weight.T)
    made, cut = head_choices(Elimination(moments, weight, 1e-9, rows=4), LayerShape(6, 3, 8), (2, 2))
    assert made[2, 2].kv_heads == (0, 1) and made[2, 2].loss < 1e-6
    assert 3 in made[3, 1].query_heads and 2 not in made[3, 1].query_heads
    assert made[1, 2].query_heads == (0, 1)
    # Nothing is lost with these heads, so that the weights are as before.
    assert cut is not None and cut.left == (2, 2) and torch.allclose(cut.projection, weight, atol=1e-4)


def test_channels_that_go_together_share_what_they_cost():
    generator = torch.Generator().manual_seed(0)
    z, weight = torch.randn(800, 200, generator=generator), torch.randn(5, 200, generator=generator)
    moments = Moments(200, 5)
    moments.add(z, z @ weight.T)
    for width in (100, 33):
        curve, cut = ffn_curve(Elimination(moments, weight, 1e-6), width)
        kept = list(curve.kept(width))
        best = torch.linalg.lstsq(z[:, kept], z @ weight.T).solution.T
        assert cut is not None and cut.left == width
        assert set(cut.projection.abs().sum(0).nonzero()[:, 0].tolist()) == set(kept)
        assert torch.allclose(cut.projection[:, kept], best, atol=1e-3)
    assert len(curve.loss) == 201 and list(curve.loss) == sorted(curve.loss)
    # With everything gone the outputs are lost whole.
    assert curve.loss[-1] == pytest.approx((z @ weight.T).square().sum().item() / 800 / 2, rel=1e-3)


def test_cutting_out_what_has_gone_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    z, weight = torch.randn(600, 120, generator=generator), torch.randn(7, 120, generator=generator)
    moments = Moments(120, 7)
    moments.add(z, z @ weight.T)
    sizes = []
    compacted = Elimination.compacted
    monkeypatch.setattr(Elimination, "compacted", lambda self: sizes.append(len(self.alive)) or compacted(self))
    made, cut = ffn_curve(Elimination(moments, weight, 1e-3), 40)
    assert len(sizes) > 5 and sizes == sorted(sizes, reverse=True) and sizes[0] == 120
    monkeypatch.setattr("prunekit.pruning.curves.loss_curves._DENSE", 0.0)
    wanted, wanted_cut = ffn_curve(Elimination(moments, weight, 1e-3), 40)
    assert made.order == wanted.order and made.loss == pytest.approx(wanted.loss, rel=1e-9)
    assert cut is not None and wanted_cut is not None
    assert torch.allclose(cut.projection, wanted_cut.projection, rtol=1e-5, atol=1e-7)


def _made_up(shape, generator):
    curves = []
    for layer in shape.layers:
        steps = torch.rand(layer.intermediate_size, generator=generator).sort().values
        loss = torch.cat([torch.zeros(1), steps.cumsum(0)]).tolist()
        order = tuple(torch.randperm(layer.intermediate_size, generator=generator).tolist())
        heads = {}
        for kv in range(1, layer.num_key_value_heads + 1):
            for group in range(1, layer.group_size + 1):
                query = tuple(head * layer.group_size + place for head in range(kv) for place in range(group))
                lost = layer.num_attention_heads - kv * group
                heads[kv, group] = HeadChoice(tuple(range(kv)), query, lost * 20 * torch.rand(1).item())
        curves.append(LayerCurves(FfnCurve(order, tuple(loss)), heads))
    return curves


@pytest.mark.parametrize("share", [0.8, 0.5, 0.4])
@pytest.mark.parametrize("multiple", [1, 8])
def test_solver_is_as_good_as_trying_everything(share, multiple):
    shape = FAMILIES["llama"].shape(tiny_model("llama").config)
    shape = shape.with_layers([LayerShape(4, 2, 32), LayerShape(4, 2, 24)])
    torch.manual_seed(0)
    curves = _made_up(shape, torch.Generator().manual_seed(3))
    budget = int(share * shape.block_parameters) + shape.embedding_parameters
    problem = Problem(budget, Rounding(ffn_multiple=multiple), units=("ffn", "kv", "query"))
    made = solve(shape, problem, curves)
    found = shape.with_layers(made)
    assert found.parameters <= budget
    options = [
        [
            LayerShape(kv * group, kv, width)
            for kv, group in curve.heads
            for width in sorted({*range(multiple, layer.intermediate_size, multiple), layer.intermediate_size})
        ]
        for layer, curve in zip(shape.layers, curves, strict=True)
    ]
    best = min(
        curves[0].loss(a) + curves[1].loss(b)
        for a in options[0]
        for b in options[1]
        if shape.with_layers([a, b]).parameters <= budget
    )
    assert sum(curve.loss(each) for curve, each in zip(curves, made, strict=True)) == pytest.approx(best, rel=1e-3)
    for index, layer in enumerate(made):
        dense = shape.layers[index].intermediate_size
        wider = problem.rounding.ffn_up(layer.intermediate_size + 1, dense)
        if wider > layer.intermediate_size:
            grown = list(made)
            grown[index] = LayerShape(layer.num_attention_heads, layer.num_key_value_heads, wider)
            assert shape.with_layers(grown).parameters > budget


def test_protected_layers_stay_whole():
    shape = FAMILIES["llama"].shape(tiny_model("llama").config)
    curves = _made_up(shape, torch.Generator().manual_seed(3))
    budget = int(0.6 * shape.block_parameters) + shape.embedding_parameters
    made = solve(shape, Problem(budget, Rounding(8), protected=frozenset({0, 3})), curves)
    assert made[0] == shape.layers[0] and made[3] == shape.layers[3]
    assert all(layer.group_size == 2 and layer.intermediate_size % 8 == 0 for layer in made)
