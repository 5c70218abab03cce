from __future__ import annotations

import copy

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.head import Head
from prunekit.plan import LayerKeep
from prunekit.recovery import rescale as module
from prunekit.recovery.refit import layer_weights, refit
from prunekit.recovery.rescale import RescaleConfig, final_hidden, rescale, split_text
from tests.support.tiny import MODEL_TYPES, VOCAB, random_plan, tiny_model
from tests.support.tiny_session import logits


def _ids(sequences: int, seed: int = 0, length: int = 32) -> torch.Tensor:
    return torch.randint(0, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _kl(dense: torch.Tensor, own: torch.Tensor) -> float:
    first, second = dense.float().log_softmax(-1), own.float().log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1).mean().item()


def _cut(model_type: str, bias: bool = False, dropped: int | None = None):
    """A tiny model, its pruned and refitted copy, and what of its layers is left."""
    model = tiny_model(model_type, bias=bias)
    family = FAMILIES[model_type]
    plan = random_plan(family.shape(model.config))
    keeps: tuple[LayerKeep, ...] = tuple(keep for keep in plan.layers if keep.index != dropped)
    used = copy.deepcopy(model)
    refit(used, family, plan.source, keeps, _ids(32))
    return model, used, keeps


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_rescaling_brings_a_refitted_model_closer_on_other_text(model_type: str, bias: bool) -> None:
    model, used, _ = _cut(model_type, bias)
    ids, other = _ids(96, seed=1), _ids(32, seed=2)
    wanted = logits(model, other)
    before = _kl(wanted, logits(used, other))
    made = rescale(used, ids, final_hidden(model, ids), RescaleConfig(rate=1e-2, batch_size=1))
    after = _kl(wanted, logits(used, other))
    assert made.used and made.after < made.before
    assert after < before
    assert len(made.kl) == 90 and RescaleConfig().steps(96) == 23


def test_factors_fold_into_weights_and_biases() -> None:
    for model_type in MODEL_TYPES:
        model = tiny_model(model_type, bias=True)
        ids = _ids(2)
        factors = module._Factors(model.model.layers)
        generator = torch.Generator().manual_seed(0)
        for each in factors.parameters:
            each.data = 0.1 * torch.randn(each.shape, generator=generator)
        hooked = logits(model, ids)
        factors.remove()
        assert not torch.allclose(logits(model, ids), hooked, atol=1e-3)
        factors.fold()
        assert torch.allclose(logits(model, ids), hooked, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_factors_have_the_gradients_of_the_weights_that_they_make(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 4, bias=bias).double().requires_grad_(False)
    holder = torch.nn.ModuleList([linear])
    inputs = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    slope = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    factors = module._Factors(holder)
    for each in factors.parameters:
        each.data = 0.3 * torch.randn(each.shape, generator=generator)
    entering, leaving = (each.detach().double().requires_grad_() for each in factors.parameters)
    sought = inputs.clone().requires_grad_()
    wanted = sought * (1 + entering) @ linear.weight.T * (1 + leaving)
    if bias:
        wanted = wanted + linear.bias * (1 + leaving)
    wanted.backward(slope)
    given = inputs.clone().requires_grad_()
    made = linear(given)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)
    made.backward(slope)
    for own, expected in zip((given, *factors.parameters), (sought, entering, leaving), strict=True):
        torch.testing.assert_close(own.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)
    factors.remove()
    assert "forward" not in vars(linear)


def test_its_divergence_is_that_of_whole_models_and_so_is_its_gradient() -> None:
    for model_type in ("llama", "gemma2"):
        model, used, _ = _cut(model_type)
        ids = _ids(3, seed=5)
        hidden = final_hidden(used, ids).requires_grad_(True)
        wanted = final_hidden(model, ids)
        kl, slope = module._slope(Head(used), wanted, hidden.detach(), ids.numel())
        assert kl == pytest.approx(_kl(logits(model, ids), logits(used, ids)), rel=1e-3)
        whole = torch.nn.functional.kl_div(
            Head(used)(hidden).log_softmax(-1),
            Head(used)(wanted).log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        whole.backward()
        assert torch.allclose(slope * ids.numel(), hidden.grad, atol=1e-5)


def test_nothing_changes_where_factors_do_not_pay() -> None:
    """A model that already is the dense one: Adam moves factors by its rate all the same."""
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    ids = _ids(32)
    made = rescale(model, ids, final_hidden(model, ids))
    assert not made.used and made.before < 1e-6
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_dropped_layers_hand_on_what_they_are_given(model_type: str) -> None:
    model, used, keeps = _cut(model_type, dropped=1)
    ids = _ids(16, seed=1)
    rescale(used, ids, final_hidden(model, ids))
    names = layer_weights(used, keeps)
    assert not any(name.startswith("model.layers.1.") for name in names)
    assert any(name.startswith("model.layers.0.") for name in names)


def test_values_that_are_not_finite_leave_the_weights_as_they_were() -> None:
    model, used, _ = _cut("llama")
    ids = _ids(16)
    wanted = final_hidden(model, ids)
    wanted[-1] = float("nan")
    before = copy.deepcopy(used.state_dict())
    with pytest.raises(PrunekitError, match="rescale=false"):
        rescale(used, ids, wanted)
    for name, tensor in used.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_text_is_split_between_refit_and_factors() -> None:
    ids = _ids(10)
    for share, count in ((0.5, 5), (0.01, 2), (0.99, 9)):
        solved, tuned = split_text(RescaleConfig(share=share), ids)
        assert len(tuned) == count and torch.equal(torch.cat([tuned, solved]), ids)
    # What the model wrote goes to the refit, as far as there is other text.
    written = torch.tensor([True, False, True, False, False, False, True, False, False, False])
    for share, places in ((0.3, [1, 3, 4]), (0.8, [0, 1, 3, 4, 5, 7, 8, 9])):
        solved, tuned = split_text(RescaleConfig(share=share), ids, written)
        assert torch.equal(tuned, ids[places])
        assert torch.equal(solved, ids[[place for place in range(10) if place not in places]])
    # Left to itself it takes 0.4, and at most two thirds of what the model has not written.
    for others, count in ((10, 4), (6, 4), (3, 2), (0, 4)):
        _, tuned = split_text(RescaleConfig(), ids, torch.arange(10) >= others)
        assert len(tuned) == count
    assert len(split_text(RescaleConfig(), ids)[1]) == 4
    with pytest.raises(PrunekitError, match="the setting sequences"):
        split_text(RescaleConfig(), ids[:2])
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"rate": 0.0}, {"batch_size": 0}, {"held_out": 1.0}):
        with pytest.raises(PrunekitError):
            RescaleConfig(**wrong)
