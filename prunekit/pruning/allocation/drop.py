"""Whole layers go: the depth counterpart of width pruning."""

from __future__ import annotations

from prunekit.errors import PrunekitError
from prunekit.plan.allocations import DropConfig
from prunekit.plan.shape import ModelShape
from prunekit.pruning.allocation.base import ALLOCATION, Allocated, Problem
from prunekit.pruning.allocation.session import Session
from prunekit.utils.advance import Advance


def check_droppable(source: ModelShape, budget: int, protected: frozenset[int]) -> None:
    """Raises PrunekitError where even the fewest layers, the protected ones or one, exceed ``budget``."""
    costs = [source.layer_parameters(layer) for layer in source.layers]
    fewest = sum(costs[index] for index in protected) if protected else min(costs)
    if source.embedding_parameters + fewest > budget:
        raise _out_of_reach(budget, source.embedding_parameters + fewest)


def _out_of_reach(budget: int, fewest: int) -> PrunekitError:
    return PrunekitError(
        f"The target of {budget:,} parameters is out of reach by dropping layers: with one layer or the protected ones "
        f"left, {fewest:,} remain. Ask for a larger target."
    )


def drop(session: Session, problem: Problem, advance: Advance, config: DropConfig | None = None) -> Allocated:
    """Drops the layers of least importance until the budget is met (ShortGPT, arXiv 2403.03853: block influence
    1 − cos(input, output), measured once on the dense model)."""
    scores = session.score()
    advance()
    assert scores.layer_importance is not None
    importance = scores.layer_importance.tolist()
    source = session.source
    count = source.parameters
    dropped: set[int] = set()
    candidates = sorted((i for i in range(len(importance)) if i not in problem.protected), key=lambda i: importance[i])
    for index in candidates:
        if count <= problem.budget or len(dropped) == len(importance) - 1:
            break
        dropped.add(index)
        count -= source.layer_parameters(source.layers[index])
    if count > problem.budget:
        raise _out_of_reach(problem.budget, count)
    keeps = tuple(keep for keep in session.keeps if keep.index not in dropped)
    record = {"step": 1, "loss": scores.loss, "layer_importance": [round(value, 8) for value in importance]}
    return Allocated(keeps, (record,))


ALLOCATION[DropConfig.name] = drop
