"""Evolutionary search of every sub-layer's level, by how far the candidate's predictions are from the dense model's."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.allocation.base import ALLOCATION, SCORED, Advance, Allocated, Problem, allocation, without_empty
from prunekit.allocation.measure import measured
from prunekit.allocation.optimal import attention_options, fill, solve
from prunekit.curves import layer_shape
from prunekit.errors import PrunekitError
from prunekit.files import write_text
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
    they first differ. At the end FFNs take up, a rounding unit at a time, what levels left of the budget.
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
    more = (problem.offspring, problem.starts, session.seed)
    return hashlib.sha256(repr((asked, more)).encode()).hexdigest()[:16]


def _start(name: str, session: Session, problem: Problem, levels: Levels) -> Sequence[LayerShape]:
    scored = tuple(unit for unit in problem.units if unit in SCORED)
    floor = problem.rounding.floor(session.source, scored, problem.protected)
    if name == "optimal" or floor.parameters > problem.budget:
        return solve(session.source, problem, levels.curves)
    # What has no score stays whole there.
    problem = replace(problem, units=scored)
    # Only adapt shrinks the model while it measures.
    own = session.copy() if name == "adapt" else session
    keeps = allocation(name)(own, problem, lambda *args, **kwargs: None).keeps
    return [keep.shape for keep in keeps]


class _Grid:
    """The candidates that meet the budget, and the ways from one to another."""

    def __init__(self, source: ModelShape, problem: Problem, levels: Levels):
        self._source, self._problem, self._levels = source, problem, levels
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

    def shapes(self, candidate: Candidate) -> list[LayerShape]:
        """The shapes that a candidate stands for."""
        return [layer_shape(heads, self._allowed[index][width]) for index, (heads, width) in enumerate(candidate)]

    def _attention(self, heads: Heads) -> int:
        return self._source.attention_parameters(layer_shape(heads, 1))

    def cost(self, candidate: Candidate) -> int:
        return self._source.with_layers(self.shapes(candidate)).parameters

    def snap(self, shapes: Sequence[LayerShape]) -> Candidate:
        """The nearest candidate that meets the budget."""
        made = [
            (
                (shape.num_key_value_heads, shape.group_size),
                min(self._widths[index], key=lambda width: abs(width - shape.intermediate_size)),
            )
            for index, shape in enumerate(shapes)
        ]
        return self._repair(made, random.Random(0), 1)

    def mutate(self, parent: Candidate, rng: random.Random, step: int) -> Candidate:
        """One to three level switches, then what the budget asks for."""
        made = list(parent)
        for _ in range(min(rng.randint(1, 3), rng.randint(1, 3))):
            for direction in (-1, 1):
                moves = self._moves(made, direction, step)
                if moves:
                    index, new = rng.choice(moves)
                    made[index] = new
        return self._repair(made, rng, step)

    def _moves(
        self, now: Sequence[tuple[Heads, int]], direction: int, step: int
    ) -> list[tuple[int, tuple[Heads, int]]]:
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

    def _repair(self, candidate: list[tuple[Heads, int]], rng: random.Random, step: int) -> Candidate:
        """Levels go down where the curves say it costs least until the budget is met, and up again where it fits."""
        made = candidate
        while (over := self.cost(tuple(made)) - self._problem.budget) > 0:
            moves = self._moves(made, -1, step if over > self._source.ffn_channel_parameters * 64 else 1)
            if not moves:
                raise PrunekitError("No level of any sub-layer meets the target; ask for a larger one.")
            self._take(made, self._some(moves, rng))
        while True:
            free = self._problem.budget - self.cost(tuple(made))
            moves = [
                (index, new)
                for index, new in self._moves(made, 1, 1)
                if self._cost_of(index, new) - self._cost_of(index, made[index]) <= free
            ]
            if not moves:
                return tuple(made)
            self._take(made, self._some(moves, rng))

    @staticmethod
    def _some(moves: list[tuple[int, tuple[Heads, int]]], rng: random.Random) -> list[tuple[int, tuple[Heads, int]]]:
        """A few of the moves, so that repairs differ from candidate to candidate."""
        return rng.sample(moves, -(-len(moves) // 4))

    def _take(self, made: list[tuple[Heads, int]], moves: list[tuple[int, tuple[Heads, int]]]) -> None:
        """Make the move of least loss a parameter: going up that is a gain, and the largest."""

        def price(move: tuple[int, tuple[Heads, int]]) -> float:
            index, new = move
            curve, old = self._levels.curves[index], made[index]
            loss = curve.loss(layer_shape(*new)) - curve.loss(layer_shape(*old))
            return loss / max(abs(self._cost_of(index, new) - self._cost_of(index, old)), 1)

        index, new = min(moves, key=price)
        made[index] = new

    def _cost_of(self, index: int, what: tuple[Heads, int]) -> int:
        return self._source.layer_parameters(layer_shape(what[0], self._allowed[index][what[1]]))


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
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                best = tuple(((int(kv), int(group)), int(width)) for kv, group, width in data["best"])
                return cls(file, best, float(data["kl"]), int(data["generation"]), list(data["history"]))
            except (OSError, ValueError, KeyError, TypeError):
                pass
        return cls(file, None, float("inf"), 0, [])

    def save(self) -> None:
        if self.file is None or self.best is None:
            return
        best = [[*heads, width] for heads, width in self.best]
        data = {"best": best, "kl": self.kl, "generation": self.generation, "history": self.history}
        write_text(self.file, json.dumps(data))


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
