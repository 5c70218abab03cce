from __future__ import annotations

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.utils.numerics.least_squares import Elimination, Moments, solve


def _problem(tokens=200, inputs=12, outputs=5, noise=0.0):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(inputs, inputs, generator=generator)
    z = torch.randn(tokens, inputs, generator=generator) @ mixing
    weight = torch.randn(outputs, inputs, generator=generator)
    y = z @ weight.T + noise * torch.randn(tokens, outputs, generator=generator)
    moments = Moments(inputs, outputs)
    for batch in (slice(0, 70), slice(70, None)):
        moments.add(z[batch], y[batch])
    return z.double(), y.double(), weight.double(), moments


def test_solution_is_that_of_least_squares():
    z, y, weight, moments = _problem(noise=0.5)
    expected = torch.linalg.lstsq(z, y).solution.T
    assert (solve(moments, weight, 1e-12) - expected).abs().max() < 1e-4
    # A ridge beyond all measure leaves the weights as they are.
    assert (solve(moments, weight + 1, 1e9) - weight - 1).abs().max() < 1e-6


def _solved(z, y, columns):
    """Squared error of the best that these columns can do, and the weights that do it."""
    if not columns:
        return y.square().sum().item(), torch.zeros(y.shape[1], 0)
    weight = torch.linalg.lstsq(z[:, columns], y).solution
    return (z[:, columns] @ weight - y).square().sum().item(), weight.T


@pytest.mark.parametrize(("rows", "at_once"), [(1, 1), (3, 1), (1, 12), (3, 4), (1, 5)])
def test_each_removal_is_solving_anew(rows, at_once):
    z, y, weight, moments = _problem(noise=0.5)
    state = Elimination(moments, weight, 1e-12, rows=rows)
    best, _ = _solved(z, y, list(range(12)))
    while state.alive.any():
        costs = state.costs()
        going = costs.topk(min(at_once, int(state.alive.sum())), largest=False).indices
        assert torch.isfinite(costs[going]).all()
        before = state.loss
        state.remove(going)
        if len(going) == 1:
            assert state.loss - before == pytest.approx(costs[going].item(), rel=1e-6)
        left = [group * rows + row for group in state.alive.nonzero()[:, 0].tolist() for row in range(rows)]
        error, solved = _solved(z, y, left)
        assert state.loss * len(z) == pytest.approx(error - best, rel=1e-3)
        assert torch.allclose(state.weight[:, left], solved.double(), atol=1e-4)
        assert state.weight.abs().sum().item() == pytest.approx(state.weight[:, left].abs().sum().item())
    assert torch.isinf(state.costs()).all()


def test_cheapest_is_the_one_that_is_missed_least():
    z, y, weight, moments = _problem(noise=0.5)
    losses = [_solved(z, y, [column for column in range(12) if column != gone])[0] for gone in range(12)]
    state = Elimination(moments, weight, 1e-12)
    assert state.costs().argmin().item() == losses.index(min(losses))


def test_a_copy_goes_its_own_way():
    _, _, weight, moments = _problem(noise=0.5)
    state = Elimination(moments, weight, 1e-6)
    kept = state.weight.clone()
    other = state.copy()
    other.remove(torch.tensor([2, 3]))
    assert state.loss == 0 < other.loss and state.alive.all() and torch.equal(state.weight, kept)


def test_metric_weighs_outputs():
    """An output that nobody looks at costs nothing, so the inputs that only serve it cost nothing either."""
    z = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(2, 6)
    weight[0, :3], weight[1, 3:] = 1.0, 10.0
    moments = Moments(6, 2)
    moments.add(z, z @ weight.T)
    assert set(Elimination(moments, weight, 1e-9).costs().topk(3, largest=False).indices.tolist()) == {0, 1, 2}
    blind = Elimination(moments, weight, 1e-9, metric=torch.diag(torch.tensor([1.0, 0.0])))
    assert set(blind.costs().topk(3, largest=False).indices.tolist()) == {3, 4, 5}
    blind.remove(torch.tensor([3, 4, 5]))
    assert blind.loss < 1e-6 < blind.costs().min()


def test_weights_say_how_much_a_token_counts():
    z, y, weight, _ = _problem(noise=0.5)
    counted, repeated = Moments(12, 5), Moments(12, 5)
    times = torch.arange(len(z)) % 3
    counted.add(z, y, times.float())
    repeated.add(z.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    assert torch.allclose(solve(counted, weight, 1e-3), solve(repeated, weight, 1e-3), atol=1e-3)


@pytest.mark.parametrize("inputs", [1, 256, 257, 700, 1300])
def test_moments_of_many_inputs(inputs):
    """They are made a few rows at a time, and only above the diagonal."""
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(30, count, generator=generator) for count in (inputs, 3))
    moments = Moments(inputs, 3)
    for batch in (slice(0, 20), slice(20, None)):
        moments.add(z[batch], y[batch])
        exact = z[: batch.stop].double().T @ z[: batch.stop].double()
        assert torch.allclose(moments.zz, exact, atol=1e-4)
    assert torch.allclose(moments.yz, y.double().T @ z.double(), atol=1e-4)


def test_numbers_that_are_none_are_refused():
    moments = Moments(3, 2)
    moments.add(torch.full((4, 3), float("nan")), torch.ones(4, 2))
    with pytest.raises(PrunekitError, match="not finite"):
        solve(moments, torch.ones(2, 3), 1e-2)
