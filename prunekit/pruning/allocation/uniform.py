"""The same share from every layer."""

from __future__ import annotations

from prunekit.plan.allocations import UniformConfig
from prunekit.pruning.allocation.base import ALLOCATION, Allocated, Problem
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.allocation.width_fit import SPARSITY_LIMIT, Fitting
from prunekit.utils.advance import Advance


def uniform(session: Session, problem: Problem, advance: Advance, config: UniformConfig | None = None) -> Allocated:
    """Every unprotected layer loses the same share; attention loses ``attention_ratio`` times that of the FFNs."""
    attention_ratio = (config or UniformConfig()).attention_ratio
    scores = session.score()
    advance()
    count = session.source.num_hidden_layers

    def losses(share: float) -> list[tuple[float, float]]:
        return [(min(share * attention_ratio, SPARSITY_LIMIT), share)] * count

    shapes = Fitting(session.source, session.shape, problem).fit(losses, 0.0, 1.0)
    return Allocated(session.select(scores, shapes), ({"step": 1, "loss": scores.loss},))


ALLOCATION[UniformConfig.name] = uniform
