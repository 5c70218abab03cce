"""One choice from every group, of least loss within all budgets: a multiple-choice knapsack, solved by HiGHS."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

_SECONDS = 60.0
_GAP = 1e-4
# Where heads of layers alike must be told apart by a second budget, a proof takes for ever, and what is found first is
# hardly bettered. Unlike a limit of time, one of nodes gives the same result every time.
_NODES = 2000
_INFEASIBLE = 2
# A solution may exceed a row by the solver's tolerances: then the row is tightened by as much, and solved again.
_TRIES = 8


def choose(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[Sequence[int]]], limits: Sequence[int]
) -> list[int] | None:
    """The place of the choice in every group, None where none was found that meets all ``limits``.

    ``losses[group][choice]`` is summed and made small, each of ``costs[group][choice]`` summed and kept at or below its
    limit, exactly.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    sizes = [len(group) for group in losses]
    count = sum(sizes)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    one_each = coo_matrix((np.ones(count), (rows, np.arange(count))), (len(sizes), count)).tocsr()
    spent = np.array([cost for group in costs for cost in group], dtype=np.int64).reshape(count, len(limits))
    # In units of a thousandth of the largest sub-layer, so that the solver's tolerances are small beside a width.
    units = np.maximum(np.abs(spent).max(axis=0), 1) / 1024
    wanted = np.array(limits, dtype=np.int64)
    bounds = wanted.copy()

    def solved(**more: int) -> Any:
        with _silent():
            return milp(
                np.array([loss for group in losses for loss in group]),
                integrality=np.ones(count),
                bounds=Bounds(0, 1),
                constraints=[
                    LinearConstraint(one_each, 1, 1),
                    LinearConstraint((spent / units).T, -np.inf, bounds / units),
                ],
                options={"time_limit": _SECONDS, "mip_rel_gap": _GAP, **more},
            )

    for _ in range(_TRIES):
        found = solved(node_limit=_NODES)
        if found.x is None and found.status != _INFEASIBLE:
            found = solved()
        if found.x is None:
            return None
        starts = np.cumsum([0, *sizes[:-1]])
        taken = [int(np.argmax(found.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)]
        over = spent[starts + np.array(taken)].sum(axis=0) - wanted
        if over.max() <= 0:
            return taken
        bounds = np.where(over > 0, bounds - np.maximum(over, 1), bounds)
    return None


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS prints some lines past Python, which would stand in the middle of what --json prints."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
