"""Adapt-Pruner's progressive allocation (arXiv 2502.03460, algorithm 1): prune a little, look again, prune on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from prunekit.plan.allocations import AdaptConfig
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.allocation.base import ALLOCATION, Allocated, Problem
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.allocation.width_fit import SPARSITY_LIMIT, Fitting
from prunekit.utils.advance import Advance


def normalised(importance: Sequence[float]) -> list[float]:
    """Centred on the mean and divided by the largest absolute value: between −1 and 1, higher matters more."""
    mean = sum(importance) / len(importance)
    centred = [value - mean for value in importance]
    largest = max(abs(value) for value in centred)
    return [value / largest if largest else 0.0 for value in centred]


def adapt(session: Session, problem: Problem, advance: Advance, config: AdaptConfig | None = None) -> Allocated:
    """Every step takes 1/T from each layer, more from layers that turn their input little, less from the others:
    s ← clip(s + 1/T − A·c, 0, 0.99), with c the normalised layer importance of the model as it is now. The best units
    by the unit importance of the same pass stay.

    Where Adapt-Pruner stops at the first step below the target, the last step here is as long as the target needs,
    and its widths are rounded and fill the budget. A layer never gets back what an earlier step took; in between,
    widths are rounded up, so that the last step can still choose either neighbour.
    """
    config = config or AdaptConfig()
    source = session.source
    attention = [0.0] * source.num_hidden_layers
    ffn = [0.0] * source.num_hidden_layers
    history: list[dict[str, Any]] = []
    rounds = 0
    while True:
        rounds += 1
        scores = session.score(rounds - 1)
        assert scores.layer_importance is not None
        pull = [config.amplitude * c for c in normalised(scores.layer_importance.tolist())]
        losses = partial(_losses, attention, ffn, pull, config.attention_ratio)
        record = {
            "step": rounds,
            "loss": scores.loss,
            "layer_importance": [round(value, 8) for value in scores.layer_importance.tolist()],
        }
        whole_step = 1 / config.steps
        fitting = Fitting(source, session.shape, problem)
        after = _full_step(fitting, losses(whole_step))
        reached = after.parameters <= problem.budget
        # Nothing moves any more, and still above: the target lies below what the clip at 0.99 leaves.
        stalled = after == session.shape and rounds >= config.steps
        if reached or stalled:
            shapes = fitting.fit(
                losses if reached else partial(losses, limit=1.0),
                -config.amplitude,
                whole_step if reached else 1.0 + config.amplitude,
            )
        else:
            shapes = after.layers
            attention, ffn = (list(values) for values in zip(*losses(whole_step), strict=True))
        keeps = session.select(scores, shapes)
        session.shrink(keeps)
        history.append({**record, "parameters": session.shape.parameters})
        advance(note=f"loss {scores.loss:.3f}, {session.shape.parameters / 1e6:,.1f} M parameters")
        if reached or stalled:
            return Allocated(keeps, tuple(history))


def rounds(source: ModelShape, problem: Problem, config: AdaptConfig) -> int:
    """How many looks :func:`adapt` takes at a model of shape ``source`` where all layers turn their input alike. Heads
    go by whole groups, so that early steps may take from FFNs alone, and the budget is reached later."""
    count = source.num_hidden_layers
    attention, ffn, current, done = [0.0] * count, [0.0] * count, source, 0
    while True:
        done += 1
        losses = _losses(attention, ffn, [0.0] * count, config.attention_ratio, 1 / config.steps)
        after = _full_step(Fitting(source, current, problem), losses)
        if after.parameters <= problem.budget or (after == current and done >= config.steps):
            return done
        current = after
        attention, ffn = (list(values) for values in zip(*losses, strict=True))


def _losses(
    attention: Sequence[float],
    ffn: Sequence[float],
    pull: Sequence[float],
    attention_ratio: float,
    step: float,
    limit: float = SPARSITY_LIMIT,
) -> list[tuple[float, float]]:
    """Shares (attention, FFN) that every layer has lost after one more step of length ``step``."""
    return [
        (_clip(heads + attention_ratio * (step - shift), limit), _clip(width + step - shift, limit))
        for heads, width, shift in zip(attention, ffn, pull, strict=True)
    ]


def _clip(share: float, limit: float) -> float:
    return max(0.0, min(share, limit))


def _full_step(fitting: Fitting, losses: list[tuple[float, float]]) -> ModelShape:
    """Shape after a whole step, FFN widths rounded up to what is allowed."""
    source, problem, layers = fitting.source, fitting.problem, []
    for index, (dense, now, (attention, ffn)) in enumerate(
        zip(source.layers, fitting.current.layers, losses, strict=True)
    ):
        kv, group = fitting.attention_at(index, attention)
        width = now.intermediate_size
        if "ffn" in problem.units and index not in problem.protected:
            wanted = int(dense.intermediate_size * (1 - ffn) + 1e-9)
            width = min(width, problem.rounding.ffn_up(max(wanted, 1), dense.intermediate_size))
        layers.append(LayerShape(kv * group, kv, width))
    return source.with_layers(layers)


ALLOCATION[AdaptConfig.name] = adapt
