from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from prunekit.models.head import Head, hidden_states
from prunekit.recovery.training import distance
from prunekit.recovery.training.distance import HiddenTarget, Loss
from tests.support.tiny_training import RandomText, tiny_pair, tiny_student


def _whole(dense, pruned, ids: torch.Tensor, ce_share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, divergence and loss of the next tokens, from whole logits under autograd."""
    with torch.no_grad():
        wanted = dense(input_ids=ids).logits.log_softmax(-1)
    own = pruned(input_ids=ids).logits.log_softmax(-1)
    kl = (wanted.exp() * (wanted - own)).sum(-1)
    ce = -own[:, :-1].gather(-1, ids[:, 1:, None])
    return (1 - ce_share) * kl.mean() + ce_share * ce.mean(), kl.sum(), ce.sum()


@pytest.mark.parametrize("train", ["blocks", "all"])
@pytest.mark.parametrize("ce_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_chunks_give_the_loss_and_the_gradients_of_whole_logits(model_type: str, ce_share: float, train: str) -> None:
    from prunekit.plan.training import TrainingConfig

    dense, pruned = tiny_pair(model_type, tied=True)
    ids = RandomText().batch(0, 3).ids
    student = tiny_student(pruned, TrainingConfig(train=train))
    loss, kl, ce = _whole(dense, pruned, ids, ce_share)
    loss.backward()
    expected = {name: each.grad.clone() for name, each in student.parameters.items()}
    student.clear()
    student.head.rows = 5
    with torch.no_grad():
        wanted = hidden_states(dense, ids).flatten(0, 1)
    hidden = hidden_states(pruned, ids)
    sums, slope = Loss(student.head, ce_share).backward(hidden, HiddenTarget(Head(dense), wanted), ids, len(ids))
    hidden.backward(slope)
    assert sums.kl.item() == pytest.approx(kl.item(), rel=1e-5)
    assert sums.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    for name, each in student.parameters.items():
        scale = max(1e-6, expected[name].abs().max().item())
        assert (each.grad - expected[name]).abs().max().item() < 1e-5 * scale, name


@pytest.mark.parametrize("ce_share", [0.0, 0.3])
def test_into_how_many_chunks_logits_are_cut_does_not_matter(ce_share: float) -> None:
    """To a millionth, in float32; tied, so that the head's gradients are summed over chunks."""
    from prunekit.plan.training import TrainingConfig

    dense, pruned = tiny_pair(tied=True)
    ids = RandomText().batch(0, 3).ids
    student = tiny_student(pruned, TrainingConfig(train="all"))
    with torch.no_grad():
        target = HiddenTarget(Head(dense), hidden_states(dense, ids).flatten(0, 1))
    made = []
    for rows in (ids.numel(), 5):
        student.clear()
        student.head.rows = rows
        hidden = hidden_states(pruned, ids)
        sums, slope = Loss(student.head, ce_share).backward(hidden, target, ids, len(ids))
        hidden.backward(slope)
        made.append((sums, [slope, *(each.grad for each in student.parameters.values())]))
    (whole, expected), (cut, gradients) = made
    assert cut.kl.item() == pytest.approx(whole.kl.item(), rel=1e-6)
    assert cut.ce.item() == pytest.approx(whole.ce.item(), rel=1e-6)
    for mine, its in zip(gradients, expected, strict=True):
        assert (mine - its).abs().max().item() <= 1e-6 * its.abs().max().item()


@pytest.mark.parametrize("rows", [1, 7, 64, 200])
def test_a_few_rows_at_a_time_give_the_same_bits(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    dense, own = (5 * torch.randn(64, 333, generator=generator) for _ in range(2))
    whole = distance.divergence(dense, own)
    kept = dense.clone(), own.clone()
    monkeypatch.setattr(distance, "_CACHED", rows * 333)
    for made, expected in zip(distance.divergence(dense, own), whole, strict=True):
        assert torch.equal(made, expected)
    assert torch.equal(dense, kept[0]) and torch.equal(own, kept[1])
    leaf = own.clone().requires_grad_(True)
    p, q = dense.log_softmax(-1), leaf.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum()
    kl.backward()
    assert whole.kl.item() == pytest.approx(kl.item(), rel=1e-5)
    assert torch.allclose(whole.slope, leaf.grad, atol=1e-5)
    assert torch.allclose(whole.normalisers, own.logsumexp(-1), atol=1e-5)


def test_measuring_gives_the_same_sums() -> None:
    dense, pruned = tiny_pair()
    ids = RandomText().batch(0, 3).ids
    loss, target = Loss(Head(pruned), 0.5), HiddenTarget(Head(dense), hidden_states(dense, ids).flatten(0, 1).detach())
    hidden = hidden_states(pruned, ids)
    sums, _ = loss.backward(hidden, target, ids, len(ids))
    again = loss.measure(hidden.detach(), target, ids)
    assert again.kl.item() == pytest.approx(sums.kl.item(), rel=1e-6)
    assert again.ce.item() == pytest.approx(sums.ce.item(), rel=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "phi3", "smollm3"])
def test_separate_documents_are_computed_as_if_alone(model_type: str) -> None:
    dense, _ = tiny_pair(model_type)
    ids = RandomText().batch(0, 2).ids
    documents = torch.zeros_like(ids)
    documents[0, 6:] = 1
    documents[1, 3:], documents[1, 9:] = 1, 2
    with torch.no_grad():
        made = hidden_states(dense, ids, documents)
        for row, cuts in ((0, (0, 6, 16)), (1, (0, 3, 9, 16))):
            for start, end in pairwise(cuts):
                alone = hidden_states(dense, ids[row : row + 1, start:end])
                assert torch.allclose(made[row, start:end], alone[0], atol=2e-5)
