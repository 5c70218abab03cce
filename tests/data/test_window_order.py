"""The order of training windows: shares that hold at every window, and shuffles that never change."""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.data.packed.order import MOST_WEIGHT, Turns, permutation, weights_of

MIXES = [
    (1.0,),
    (0.5, 0.5),
    (0.9, 0.1),
    (1 / 3, 1 / 3, 1 / 3),
    (0.61, 0.29, 0.1),
    (0.7, 0.1, 0.1, 0.05, 0.05),
    (0.2501, 0.2499, 0.3333, 0.1667),
    (0.99, 0.0099, 0.0001),
    (0.5, *[0.05] * 10),
]


@pytest.mark.parametrize("shares", MIXES, ids=lambda shares: f"{len(shares)} parts of {shares[0]:.4g}")
def test_every_part_has_its_share_of_any_first_windows(shares):
    weights = np.array(weights_of(shares))
    turns = Turns(weights.tolist())
    total = int(weights.sum())
    parts, _ = turns.of(np.arange(2 * total))
    counts = np.cumsum(np.eye(len(shares), dtype=np.int64)[parts], axis=0)
    # Of the first j windows, counted exactly: |count - j·weight/total| < 1.
    j = np.arange(1, 2 * total + 1)[:, None]
    assert np.abs(counts * total - j * weights).max() < total
    assert counts[-1].tolist() == (2 * weights).tolist()
    for windows in (0, 1, total, total + 1, 2 * total - 1):
        assert turns.counts(windows) == (counts[windows - 1].tolist() if windows else [0] * len(shares))


@pytest.mark.parametrize("shares", MIXES[2:6])
def test_the_windows_of_a_part_come_one_after_another(shares):
    turns = Turns(weights_of(shares))
    parts, numbers = turns.of(np.arange(500))
    for part in range(len(shares)):
        assert numbers[parts == part].tolist() == list(range((parts == part).sum()))
    late = 10**12 + 7
    some = turns.of(np.arange(late, late + 40))
    for index in range(40):
        assert [each[index] for each in some] == [each[0] for each in turns.of(np.array([late + index]))]


def test_shares_become_whole_numbers():
    assert weights_of([1 / 3] * 3) == (1, 1, 1)
    assert weights_of([0.75, 0.25]) == (3, 1)
    assert weights_of([0.333, 0.333, 0.333]) == (1, 1, 1)
    assert weights_of([0.99999, 0.00001]) == (10_000, 1)
    assert sum(weights_of([1 / 4000] * 4000)) <= MOST_WEIGHT


def test_shuffles_are_the_same_on_every_machine():
    assert permutation(10, "0:0", 3).tolist() == [2, 5, 0, 3, 8, 1, 6, 7, 4, 9]
    assert sorted(permutation(1000, "a")) == list(range(1000))
    assert permutation(1000, "0", 1).tolist() != permutation(1000, "0", 2).tolist()
    # All places are about alike: 6,000 shuffles of 3, each of the 6 orders near 1,000 times.
    orders = [tuple(permutation(3, "seed", number).tolist()) for number in range(6000)]
    assert max(abs(orders.count(order) - 1000) for order in set(orders)) < 150 and len(set(orders)) == 6
