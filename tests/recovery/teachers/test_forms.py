"""How near what is written down comes to what the dense model says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from prunekit.recovery.teachers.forms import HiddenForm, SampledForm, draw
from prunekit.recovery.training.distance import HiddenTarget, WindowTargets, divergence
from tests.support.tiny import VOCAB
from tests.support.tiny_training import LENGTH, RandomText, tiny_pair, tiny_teacher

SIZE = 64


def _kept(form, hidden: torch.Tensor, names=None):
    names = names or [bytes([number]) * 16 for number in range(len(hidden))]
    return form.target([form.pack(name, each) for name, each in zip(names, hidden, strict=True)])


@pytest.fixture(scope="module")
def models():
    """A dense model's teacher, its hidden states [2, L, d], and a pruned model's logits [2 L, V]."""
    dense, pruned = tiny_pair()
    windows = RandomText().batch(0, 2)
    with torch.no_grad():
        own = pruned(input_ids=windows.ids).logits.flatten(0, 1)
        return tiny_teacher(dense), tiny_teacher(dense).hidden(windows), own


def test_hidden_states_are_off_by_their_rounding_alone(models) -> None:
    teacher, hidden, own = models
    target = _kept(HiddenForm(teacher, SIZE), hidden)
    # Half of the last of bfloat16's 8 digits.
    assert ((target.hidden - hidden.flatten(0, 1)).abs() <= 2**-8 * hidden.flatten(0, 1).abs()).all()
    weight = teacher.head._project.weight
    bound = 2**-8 * (hidden.flatten(0, 1).abs() @ weight.abs().T)
    exact, rounded = teacher.head(hidden.flatten(0, 1)), teacher.head(target.hidden)
    assert ((rounded - exact).abs() <= bound + 1e-5).all()
    kl, slope, _ = HiddenTarget(teacher.head, hidden.flatten(0, 1)).apart(0, own)
    made, kept, _ = target.apart(0, own)
    assert made.item() == pytest.approx(kl.item(), rel=1e-2)
    assert (kept - slope).norm() < 1e-2 * slope.norm()


def test_what_was_rounded_before_is_kept_exactly(models) -> None:
    teacher, hidden, _ = models
    rounded = hidden.bfloat16()
    target = _kept(HiddenForm(teacher, SIZE), rounded)
    assert torch.equal(target.hidden, rounded.flatten(0, 1).float())


@pytest.mark.parametrize("samples", [2, 12])
def test_draws_give_the_divergence_and_its_gradient_on_average(models, samples: int) -> None:
    teacher, hidden, own = models
    expected, slope, _ = HiddenTarget(teacher.head, hidden.flatten(0, 1)).apart(0, own)
    form = SampledForm(teacher, samples, VOCAB)
    made = []
    for number in range(300):
        names = [each.to_bytes(16, "little") for each in (number, 1000 + number)]
        made.append(_kept(form, hidden, names).apart(0, own))
    sums, slopes, _ = zip(*made, strict=True)
    sums = torch.stack(sums)
    assert (sums.mean() - expected).abs() < 4 * sums.std() / len(sums) ** 0.5
    off = torch.stack([each - slope for each in slopes])
    # What is left after averaging falls with the root of how many were averaged, as noise does.
    assert off.mean(0).norm() < 1.3 * off.pow(2).sum((1, 2)).mean().sqrt() / len(slopes) ** 0.5


def test_points_that_lie_evenly_are_off_by_less_than_independent_draws(models) -> None:
    teacher, hidden, _ = models
    logits = teacher.head(hidden.flatten(0, 1))
    chances = logits.double().softmax(-1)
    generator = torch.Generator().manual_seed(0)
    moved = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator)
    sizes, told, ids, counts = draw(logits, moved, 50)
    rows = torch.arange(len(logits)).repeat_interleave(sizes)
    drawn = torch.zeros_like(chances)
    drawn[rows, ids] = counts.double()
    assert (drawn.sum(-1) == 50).all() and ((drawn - 50 * chances).abs() < 1).all()
    assert torch.allclose(told, (drawn / 50 * chances.log()).sum(-1))
    independent = torch.multinomial(chances, 50, replacement=True, generator=generator)
    others = torch.zeros_like(chances).scatter_add_(-1, independent, torch.ones_like(independent, dtype=torch.float64))
    assert (drawn / 50 - chances).norm() < 0.8 * (others / 50 - chances).norm()


def test_the_name_of_a_window_decides_its_draws(models) -> None:
    teacher, hidden, _ = models
    form = SampledForm(teacher, 5, VOCAB)
    one, other = bytes(16), bytes([1]) * 16
    assert form.pack(one, hidden[0]) == form.pack(one, hidden[0]) != form.pack(other, hidden[0])
    teacher.head.rows, before = 3, teacher.head.rows
    in_parts = form.target([form.pack(one, hidden[0])])
    teacher.head.rows = before
    packed = form.pack(one, hidden[0])
    whole = form.target([packed])
    assert torch.equal(in_parts.ids, whole.ids) and torch.equal(in_parts.weights, whole.weights)
    assert len(packed) <= 4 + LENGTH * SampledForm.position_bytes(5, VOCAB)


def test_impossible_tokens_are_never_drawn_and_large_vocabularies_fit() -> None:
    logits = torch.full((2, 70_000), -torch.inf)
    logits[0, [5, 69_999]] = 0.0
    logits[1, 7] = 3.0
    for moved in (0.0, 0.5, 1 - 2**-53):
        sizes, _, ids, counts = draw(logits, torch.full((2, 1), moved, dtype=torch.float64), 4)
        assert sizes.tolist() == [2, 1] and ids.tolist() == [5, 69_999, 7]
        assert counts.sum() == 8 and counts[2] == 4
    assert SampledForm.position_bytes(4, 70_000) == 4 * 6 + 6


def test_a_part_of_the_positions_is_told_as_in_the_whole(models) -> None:
    teacher, hidden, own = models
    for form in (HiddenForm(teacher, SIZE), SampledForm(teacher, 6, VOCAB)):
        target = _kept(form, hidden)
        kl, slope, normalisers = target.apart(0, own)
        pieces = [target.apart(start, own[start : start + 7]) for start in range(0, len(own), 7)]
        assert sum(piece[0].item() for piece in pieces) == pytest.approx(kl.item(), rel=1e-5)
        assert torch.allclose(torch.cat([piece[1] for piece in pieces]), slope, atol=1e-6)
        assert torch.allclose(torch.cat([piece[2] for piece in pieces]), normalisers, atol=1e-6)
        assert torch.allclose(normalisers, own.logsumexp(-1), atol=1e-5)


def test_windows_of_different_kinds_are_told_in_their_order(models) -> None:
    teacher, hidden, own = models
    exact = HiddenTarget(teacher.head, hidden[1])
    drawn = _kept(SampledForm(teacher, 6, VOCAB), hidden[:1])
    mixed = WindowTargets(LENGTH, [(exact, 0), (drawn, 0)])
    own = own.roll(LENGTH, 0)
    first, last = exact.apart(0, own[:LENGTH]), drawn.apart(0, own[LENGTH:])
    for cuts in ((0, 2 * LENGTH), (0, 5, LENGTH + 3, 2 * LENGTH)):
        made = [mixed.apart(start, own[start:end]) for start, end in pairwise(cuts)]
        assert sum(each[0].item() for each in made) == pytest.approx((first[0] + last[0]).item(), rel=1e-5)
        assert torch.allclose(torch.cat([each[1] for each in made]), torch.cat([first[1], last[1]]), atol=1e-6)


def test_the_gradient_is_that_of_the_loss() -> None:
    dense, _ = tiny_pair()
    teacher = tiny_teacher(dense)
    with torch.no_grad():
        hidden = teacher.hidden(RandomText().batch(3, 1))
    own = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    target = _kept(SampledForm(teacher, 6, VOCAB), hidden)
    kl, slope, _ = target.apart(0, own.detach())
    rows = torch.arange(LENGTH).repeat_interleave(target.first.diff())
    loss = target.told.sum() - (target.weights * own.log_softmax(-1)[rows, target.ids]).sum()
    (expected,) = torch.autograd.grad(loss, own)
    assert kl.item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(slope, expected, atol=1e-5)
    exact, *_ = divergence(teacher.head(hidden[0]), own.detach())
    assert kl.item() == pytest.approx(exact.item(), rel=0.5)
