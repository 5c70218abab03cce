"""Evolutionary search of every sub-layer's level, by how far the candidate's predictions are from the dense model's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.allocation.base import ALLOCATION, SCORED, Advance, Allocated, Problem, allocation, without_empty
from prunekit.allocation.measure import measured
from prunekit.allocation.optimal import attention_options, fill, solve
from prunekit.budgets import can_grow
from prunekit.cache import read_kept, write_kept
from prunekit.curves import layer_shape
from prunekit.errors import PrunekitError
from prunekit.session import Session
from prunekit.shape import Heads, LayerShape, ModelShape

if TYPE_CHECKING:
    from prunekit.fitness import Fitness
    from prunekit.levels import Candidate, Levels

# Shares of the text that a candidate is measured on, and of the candidates that get there.
_STAGES = ((0.25, 1.0), (1.0, 0.25))
# The step of FFN levels halves at these shares of the generations.
_COARSE = (0.0, 0.3, 0.6)


def search(session: Session, problem: Problem, advance: Advance) -> Allocated:
    """EvoPress-like search (arXiv 2410.14649; Týr-the-Pruner, arXiv 2503.09657) over a level database.

    Starts from the best of ``problem.starts``. In every generation ``problem.offspring`` mutations of the parent, each
    a few level switches (one sub-layer loses, another gains, attention and FFNs alike), are measured on a quarter of
    the text, the best quarter of them on all of it, and the best replaces the parent if it is better. Candidates are
    put together by exchanging output projections in the dense model, and start from the parent's activations where
    they first differ. At the end FFNs take up, a rounding unit at a time, what levels left of the budgets.
    """
    source = session.source
    kept = session.levels(advance)
    fitness = session.fitness(kept)
    levels = measured(source, kept, fitness, advance, problem.units)
    grid = _Grid(source, problem, levels)
    state = _State.load(session.store, _digest(session, problem))
    try:
        if state.best is None:
            for name in problem.starts:
                # Scores are of the dense model, not of the candidate that was measured last.
                fitness.restore()
                candidate = grid.snap(_start(name, session, problem, levels))
                kl = fitness.measure(candidate)
                advance(note=f"{name}: KL {kl:.4f}")
                if state.best is None or kl < state.kl:
                    state.best, state.kl = candidate, kl
            state.history.append({"step": 0, "kl": round(state.kl, 6)})
        else:
            state.kl = fitness.measure(state.best)
            advance(len(problem.starts) + state.generation)
        while state.generation < problem.generations:
            _generation(state, grid, fitness, problem, session.seed)
            state.save()
            advance(note=f"KL {state.kl:.4f}")
    finally:
        fitness.close()
    assert state.best is not None
    shapes = fill(source, problem, levels.curves, grid.shapes(state.best))
    keeps = without_empty(
        curve.keep(keep.index, shape) for keep, curve, shape in zip(session.keeps, levels.curves, shapes, strict=True)
    )
    return Allocated(keeps, tuple(state.history))


def _digest(session: Session, problem: Problem) -> str:
    asked = (problem.budget, problem.rounding, problem.units, sorted(problem.protected), problem.generations)
    more = (problem.offspring, problem.starts, session.seed, problem.budgets and problem.budgets.key)
    return hashlib.sha256(repr((asked, more)).encode()).hexdigest()[:16]


def _start(name: str, session: Session, problem: Problem, levels: Levels) -> Sequence[LayerShape]:
    scored = tuple(unit for unit in problem.units if unit in SCORED)
    floor = problem.rounding.floor(session.source, scored, problem.protected)
    if name == "optimal" or floor.parameters > problem.budget:
        return solve(session.source, problem, levels.curves)
    if not problem.held(session.source).only_parameters:
        # The others keep to a number of parameters only: as many as the best choice within all budgets has.
        best = session.source.with_layers(solve(session.source, problem, levels.curves))
        if best.parameters == session.source.parameters:
            return best.layers
        problem = replace(problem, budget=best.parameters)
    # What has no score stays whole there.
    problem = replace(problem, units=scored)
    # Only adapt shrinks the model while it measures.
    own = session.copy() if name == "adapt" else session
    keeps = allocation(name)(own, problem, lambda *args, **kwargs: None).keeps
    return [keep.shape for keep in keeps]


Switched = tuple[Heads, int]
"""The levels of one layer: heads and an FFN width."""
Move = tuple[int, Switched]
"""A layer, and the levels that it changes to."""


class _Grid:
    """The candidates that meet the budgets, and the ways from one to another."""

    def __init__(self, source: ModelShape, problem: Problem, levels: Levels):
        self._source, self._problem, self._levels = source, problem, levels
        self._budgets = problem.held(source)
        self._heads = [
            [(layer.num_key_value_heads, layer.group_size)]
            if index in problem.protected
            else self._ladder(index, attention_options(source, problem, index, levels.curves[index]))
            for index, layer in enumerate(source.layers)
        ]
        self._allowed = [
            self._rounded(levels.ffn[index], layer.intermediate_size)
            if index not in problem.protected and "ffn" in problem.units
            else {layer.intermediate_size: layer.intermediate_size}
            for index, layer in enumerate(source.layers)
        ]
        if "ffn-layer" in problem.units:
            for index, allowed in enumerate(self._allowed):
                allowed.update({} if index in problem.protected else {0: 0})
        self._widths = [sorted(allowed) for allowed in self._allowed]
        # About what a channel costs of each budget.
        widest = max(range(len(source.layers)), key=lambda index: source.layers[index].intermediate_size)
        width = source.layers[widest].intermediate_size
        self._channel = [
            (budget.cost.ffn(widest, width) - budget.cost.ffn(widest, 1)) // max(1, width - 1)
            for budget in self._budgets
        ]

    def _ladder(self, index: int, options: Sequence[Heads]) -> list[Heads]:
        """Heads by rising parameters. A merge that loses more than a cheaper choice would only stand in the way."""
        choices = self._levels.curves[index].heads
        made: list[Heads] = []
        for heads in sorted(options, key=self._attention):
            if not choices[heads].merged or all(choices[heads].loss < choices[cheaper].loss for cheaper in made):
                made.append(heads)
        return made

    def _rounded(self, levels: Sequence[int], dense: int) -> dict[int, int]:
        """For each level worth having the allowed width that it stands for: the next one below it, or the floor."""
        rounding = self._problem.rounding
        made = {rounding.ffn_down(level, dense): level for level in (*sorted(levels, reverse=True), dense)}
        return {level: width for width, level in made.items()}

    def shapes(self, candidate: Sequence[Switched]) -> list[LayerShape]:
        """The shapes that a candidate stands for."""
        return [self._shape(index, levels) for index, levels in enumerate(candidate)]

    def _attention(self, heads: Heads) -> int:
        return self._source.attention_parameters(layer_shape(heads, 1))

    def left(self, candidate: Sequence[Switched]) -> tuple[int, ...]:
        """What a candidate leaves of every budget."""
        return self._budgets.left(self.shapes(candidate))

    def snap(self, shapes: Sequence[LayerShape]) -> Candidate:
        """The nearest candidate that meets the budgets."""
        made = [
            (
                (shape.num_key_value_heads, shape.group_size),
                min(self._widths[index], key=lambda width: abs(width - shape.intermediate_size)),
            )
            for index, shape in enumerate(shapes)
        ]
        return self._repair(made, random.Random(0), 1)

    def mutate(self, parent: Candidate, rng: random.Random, step: int) -> Candidate:
        """One to three level switches, then what the budgets ask for."""
        made = list(parent)
        for _ in range(min(rng.randint(1, 3), rng.randint(1, 3))):
            for direction in (-1, 1):
                moves = self._moves(made, direction, step)
                if moves:
                    index, new = rng.choice(moves)
                    made[index] = new
        try:
            return self._repair(made, rng, step)
        except PrunekitError:
            # Where a measured latency doesn't fall with the heads, the way down may miss what is possible.
            return parent

    def _moves(self, now: Sequence[Switched], direction: int, step: int) -> list[Move]:
        """Every layer with one sub-layer a level smaller (−1) or larger (1)."""
        made = []
        for index, (heads, width) in enumerate(now):
            place = self._heads[index].index(heads) + direction
            if 0 <= place < len(self._heads[index]):
                made.append((index, (self._heads[index][place], width)))
            widths = self._widths[index]
            place = min(max(widths.index(width) + direction * step, 0), len(widths) - 1)
            if widths[place] != width:
                made.append((index, (heads, widths[place])))
        return made

    def _repair(self, candidate: list[Switched], rng: random.Random, step: int) -> Candidate:
        """Levels go down where the curves say it costs least until the budgets are met, and up again where it fits."""
        made = candidate
        while min(left := self.left(made)) < 0:
            far = any(-free > 64 * channel for free, channel in zip(left, self._channel, strict=True))
            moves = self._moves(made, -1, step if far else 1)
            if not moves:
                raise PrunekitError("No level of any sub-layer meets the target; ask for a larger one.")
            # What relieves a budget that is exceeded; others go along only where nothing does.
            over = [(move, self._relief(made, move, left)) for move in moves]
            worth = [(move, relief) for move, relief in over if relief > 0] or over
            self._take(made, self._some(worth, rng))
        while True:
            left = self.left(made)
            fitting = [
                (move, self._budgets.relative(change))
                for move in self._moves(made, 1, 1)
                if can_grow(change := self._change(made, move), left)
            ]
            if not fitting:
                return tuple(made)
            self._take(made, self._some(fitting, rng))

    def _change(self, made: Sequence[Switched], move: Move) -> tuple[int, ...]:
        index, new = move
        return self._budgets.change(index, self._shape(index, made[index]), self._shape(index, new))

    def _relief(self, made: Sequence[Switched], move: Move, left: Sequence[int]) -> float:
        """How much a move down takes from the budgets that are exceeded, as shares of what they are exceeded by."""
        return sum(change / free for change, free in zip(self._change(made, move), left, strict=True) if free < 0)

    @staticmethod
    def _some(moves: list[tuple[Move, float]], rng: random.Random) -> list[tuple[Move, float]]:
        """A few of the moves, so that repairs differ from candidate to candidate."""
        return rng.sample(moves, -(-len(moves) // 4))

    def _take(self, made: list[Switched], moves: list[tuple[Move, float]]) -> None:
        """Make the move, each with its weight, of least loss for that: going up that is a gain, and the largest."""

        def price(weighed: tuple[Move, float]) -> float:
            (index, new), weight = weighed
            curve, old = self._levels.curves[index], made[index]
            loss = curve.loss(layer_shape(*new)) - curve.loss(layer_shape(*old))
            return loss / max(weight, 1e-12)

        (index, new), _ = min(moves, key=price)
        made[index] = new

    def _shape(self, index: int, what: Switched) -> LayerShape:
        return layer_shape(what[0], self._allowed[index][what[1]])


@dataclass
class _State:
    """Where a search stands; kept in ``file`` after every generation."""

    file: Path | None
    best: Candidate | None
    kl: float
    generation: int
    history: list[dict[str, float]]

    @classmethod
    def load(cls, store: Path | None, digest: str) -> _State:
        file = None if store is None else store / f"search-{digest}.json"
        if file is not None:
            data = read_kept(file)
            if data is not None:
                best = tuple(((kv, group), width) for kv, group, width in data["best"])
                return cls(file, best, data["kl"], data["generation"], data["history"])
        return cls(file, None, float("inf"), 0, [])

    def save(self) -> None:
        if self.file is None or self.best is None:
            return
        best = [[*heads, width] for heads, width in self.best]
        data = {"best": best, "kl": self.kl, "generation": self.generation, "history": self.history}
        write_kept(self.file, data)


def _generation(state: _State, grid: _Grid, fitness: Fitness, problem: Problem, seed: int) -> None:
    """One generation; repeatable from its number alone, so that an interrupted search goes on as it would have."""
    assert state.best is not None
    state.generation += 1
    rng = random.Random(f"{seed}:{state.generation}")
    done = (state.generation - 1) / problem.generations
    step = 2 ** (len(_COARSE) - sum(done >= start for start in _COARSE))
    fitness.adopt(state.best)
    pool: list[Candidate] = []
    for _ in range(4 * problem.offspring):
        child = grid.mutate(state.best, rng, step)
        if child != state.best and child not in pool:
            pool.append(child)
        if len(pool) == problem.offspring:
            break
    for share, part in _STAGES:
        pool = pool[: max(1, round(part * problem.offspring))]
        measured = [(fitness.measure(child, share), place, child) for place, child in enumerate(pool)]
        pool = [child for _, _, child in sorted(measured)]
    kl = min(measured)[0] if pool else float("inf")
    if kl < state.kl:
        state.best, state.kl = pool[0], kl
    state.history.append({"step": state.generation, "kl": round(state.kl, 6)})


ALLOCATION["search"] = search
