"""How long several sizes take: each is planned, pruned in memory and evaluated, after a text and curves of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from prunekit.pipeline.forecast.room import PROGRAM, Room, room
from prunekit.pipeline.forecast.work import Text, Work
from prunekit.utils.phases import titles

if TYPE_CHECKING:
    from prunekit.pipeline.forecast.trial import Rates
    from prunekit.plan.recipe import Recipe
    from prunekit.plan.shape import ModelShape

# Bytes of a number where weights that were rounded are computed with.
_FLOAT = 4


@dataclass(frozen=True)
class Comparison:
    """What is compared: the share of its blocks that every size leaves which is still to be measured, by its phase;
    what the phases of the plans and of the dense model are called. ``rounds`` are as :class:`Work` has them, of the
    smallest size. ``tokens`` are evaluated. With ``exports`` each size is written, in ``stored`` bytes a number, and
    measured once more."""

    shares: Mapping[str, float]
    plans: str
    dense: str
    tokens: int
    stored: int
    exports: bool
    rounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparing:
    """The work of it, by a ``recipe`` for a model of that ``shape``; ``text`` is what its phases take."""

    shape: ModelShape
    recipe: Recipe
    text: Text
    asked: Comparison

    @cached_property
    def plans(self) -> Work:
        """The text and the plan of the smallest size."""
        share = min(self.asked.shares.values())
        return Work(self.shape, share, self.text, self._stored(max(self.asked.shares.values())), self.asked.rounds)

    def seconds(self, rates: Rates) -> dict[str, float]:
        """By phases. Exports are not counted."""
        asked, made = self.asked, self.plans.seconds(rates)
        again = made[titles.WIDTHS] if self.text.curves else made[titles.SCORING]
        found = {
            title: made[title]
            for title in (titles.READING, titles.OWN_TEXT, titles.SCORING, titles.FISHER, titles.CURVES)
        }
        found |= {titles.WHOLE: made[titles.WHOLE], titles.WIDTHS: made[titles.WIDTHS]}
        for number in range(2, len(asked.rounds) + 2):
            for title in (titles.REFIT, titles.FISHER, titles.CURVES, titles.WHOLE):
                found[titles.of_round(title, number)] = made[titles.of_round(title, number)]
        found[asked.plans] = (len(asked.shares) - 1) * again
        found[asked.dense] = self.plans.reading(rates, asked.tokens, 1.0, heads=1)
        # The first size also has the dense model read, for all of them.
        before = self.plans.reading(rates, asked.tokens, 1.0, heads=0)
        for title, share in asked.shares.items():
            found[title] = before + self._size(rates, share)
            before = 0.0
        return found

    def _size(self, rates: Rates, share: float) -> float:
        made = replace(self.plans, share=share)
        found = made.seconds(rates)
        solved = found[titles.REFIT] + found[titles.RESCALING]
        if self.recipe.method.compensates:
            solved += found[titles.BIASES]
        times = 2 if self.asked.exports else 1
        return solved + times * made.reading(rates, self.asked.tokens, share, heads=2)

    def operations(self) -> float:
        """As :meth:`Work.operations`."""
        text, count = self.text, len(self.asked.shares)
        tokens = 3.0 * (count - 1) * (text.refit + text.rescaling) + (count + 2.0) * self.asked.tokens
        return self.plans.operations() + 2.0 * self.shape.parameters * tokens

    def room(self, itemsize: int, *, fast: bool) -> Room:
        """Bytes, in a dtype of so many."""
        needed, wide = room(self.plans, itemsize, fast=fast), max(self.asked.shares.values())
        kept = self._numbers(wide)
        # What was solved lies beside the pruned model, and what an export rounded beside that which computes with it.
        copies = 2.0 * kept * (_FLOAT if self.asked.exports else itemsize)
        head = float(self.shape.vocab_size * self.shape.hidden_size * itemsize)
        states = float(self.asked.tokens * self.shape.hidden_size * itemsize)
        return replace(needed, memory=max(needed.memory, PROGRAM + copies + head), disk=needed.disk + states)

    def _numbers(self, share: float) -> float:
        outside = self.shape.parameters - self.shape.block_parameters
        return outside + share * self.shape.block_parameters

    def _stored(self, share: float) -> int:
        """A checkpoint and its export, of one size at a time."""
        return int(2 * self._numbers(share) * self.asked.stored) if self.asked.exports else 0
