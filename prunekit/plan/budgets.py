"""Budgets: the most that a model may cost, of one thing or of several at once.

A cost is a whole number (parameters, FLOPs, bytes, nanoseconds) and adds up over sub-layers, so that a budget is met
exactly, and can stand as a row of an integer programme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from prunekit.plan.shape import Heads, LayerShape, ModelShape

PARAMETERS, FLOPS, KV_BYTES, LATENCY = "parameters", "flops_per_token", "kv_bytes_per_token", "latency_seconds"
_WORDS = {
    PARAMETERS: "parameters",
    FLOPS: "FLOPs a token",
    KV_BYTES: "KV-cache bytes a token",
    LATENCY: "predicted latency",
}


@dataclass(frozen=True)
class Cost:
    """One thing that a model costs: ``fixed`` outside its layers, and what the heads and the FFN of a layer add.

    ``attention(index, heads)`` and ``ffn(index, width)`` are of layer ``index``; what a layer costs whatever its widths
    is part of its attention. ``facts`` say under which conditions it holds.
    """

    name: str
    fixed: int
    attention: Callable[[int, Heads], int]
    ffn: Callable[[int, int], int]
    facts: dict[str, Any] = field(default_factory=dict)

    def layer(self, index: int, shape: LayerShape) -> int:
        heads = (shape.num_key_value_heads, shape.group_size)
        return self.attention(index, heads) + self.ffn(index, shape.intermediate_size)

    def of(self, layers: Sequence[LayerShape]) -> int:
        """What a model with such layers costs."""
        return self.fixed + sum(self.layer(index, shape) for index, shape in enumerate(layers))

    def at(self, origins: Sequence[int]) -> Cost:
        """The same of a model whose layers are those of this one's that ``origins`` names."""
        attention, ffn = self.attention, self.ffn
        return replace(
            self,
            attention=lambda index, heads: attention(origins[index], heads),
            ffn=lambda index, width: ffn(origins[index], width),
        )

    @property
    def words(self) -> str:
        """What is counted, for people."""
        context = self.facts.get("context")
        return _WORDS[self.name] + (f" at a context of {context}" if context else "")

    def value(self, units: int) -> float:
        """``units`` as JSON says them: times are in seconds."""
        return round(units * 1e-9, 9) if self.name == LATENCY else units

    def text(self, units: int) -> str:
        """``units`` for people."""
        return f"{units * 1e-6:,.3f} ms" if self.name == LATENCY else f"{units:,}"


def shape_cost(
    name: str, source: ModelShape, formula: Callable[[ModelShape], int], facts: dict[str, Any] | None = None
) -> Cost:
    """``formula``, one of :class:`ModelShape`'s that adds up over sub-layers, taken apart by asking it about models of
    one and two layers. All layers cost alike."""
    one = LayerShape(1, 1, 1)
    alone = formula(source.with_layers([one]))

    @cache
    def attention(heads: Heads) -> int:
        return formula(source.with_layers([one, LayerShape(heads[0] * heads[1], heads[0], 1)])) - alone

    @cache
    def ffn(width: int) -> int:
        return formula(source.with_layers([LayerShape(1, 1, width)])) - alone

    return Cost(
        name,
        alone - attention((1, 1)),
        lambda index, heads: attention(heads),
        lambda index, width: ffn(width),
        facts or {},
    )


def parameter_cost(source: ModelShape) -> Cost:
    return shape_cost(PARAMETERS, source, lambda shape: shape.parameters)


@dataclass(frozen=True)
class Budget:
    """At most ``limit`` of ``cost``, where the dense model has ``dense``. ``asked`` is the option as it was given."""

    cost: Cost
    limit: int
    dense: int
    asked: str

    @property
    def removed(self) -> float:
        """The share of what the dense model costs that must go."""
        return max(0.0, 1 - self.limit / self.dense)

    @property
    def removed_of_layers(self) -> float:
        """The share of what the dense model's layers cost that must go."""
        return max(0.0, (self.dense - self.limit) / max(1, self.dense - self.cost.fixed))

    def after(self, gone: float) -> Budget:
        """The budget that asks for a share ``gone`` of what the dense model's layers cost, and for no more than this
        one."""
        return replace(self, limit=max(self.limit, self.dense - int(gone * (self.dense - self.cost.fixed))))

    def part(self, share: float) -> Budget:
        """The budget that lies a ``share`` of the way from the dense model to this one's limit."""
        return replace(self, limit=max(self.limit, self.dense - int(share * (self.dense - self.limit))))


@dataclass(frozen=True)
class Budgets:
    """Budgets that must all be met. Costs of several are tuples in their order."""

    each: tuple[Budget, ...]

    @classmethod
    def of_parameters(cls, source: ModelShape, limit: int) -> Budgets:
        """The one budget of ``limit`` parameters."""
        return cls((Budget(parameter_cost(source), limit, source.parameters, f"{limit:,} parameters"),))

    @property
    def removed_of_layers(self) -> float:
        """The largest of all."""
        return max(budget.removed_of_layers for budget in self.each)

    def after(self, gone: float) -> Budgets:
        """All of them, each asking for a share ``gone`` of what the layers cost, and for no more than it does here."""
        return Budgets(tuple(budget.after(gone) for budget in self.each))

    def part(self, share: float) -> Budgets:
        """All of them a ``share`` of the way from the dense model to what is asked."""
        return Budgets(tuple(budget.part(share) for budget in self.each))

    def at(self, origins: Sequence[int]) -> Budgets:
        """The same of a model whose layers are those of this one's that ``origins`` names."""
        return Budgets(tuple(replace(budget, cost=budget.cost.at(origins)) for budget in self.each))

    def __iter__(self) -> Iterator[Budget]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    def layer(self, index: int, shape: LayerShape) -> tuple[int, ...]:
        """What a layer costs of each."""
        return tuple(budget.cost.layer(index, shape) for budget in self.each)

    def left(self, layers: Sequence[LayerShape]) -> tuple[int, ...]:
        """What a model with such layers leaves of each; negative where it costs too much."""
        return tuple(budget.limit - budget.cost.of(layers) for budget in self.each)

    def fit(self, layers: Sequence[LayerShape]) -> bool:
        """True where no budget is exceeded."""
        return min(self.left(layers)) >= 0

    def change(self, index: int, before: LayerShape, after: LayerShape) -> tuple[int, ...]:
        """What it costs more of each to exchange the shape of a layer."""
        return tuple(new - old for new, old in zip(self.layer(index, after), self.layer(index, before), strict=True))

    @property
    def parameters(self) -> int | None:
        """The most parameters allowed; None where nothing limits them by themselves."""
        return min((budget.limit for budget in self.each if budget.cost.name == PARAMETERS), default=None)

    @property
    def text(self) -> str:
        """All that was asked, for messages."""
        return " and ".join(budget.asked for budget in self.each)

    def describe(self, layers: Sequence[LayerShape]) -> list[dict[str, Any]]:
        """For a plan's provenance: what was asked, what that allows, what the dense and the pruned model cost."""
        return [
            {
                "asked": budget.asked,
                "cost": budget.cost.name,
                "dense": budget.cost.value(budget.dense),
                "at_most": budget.cost.value(budget.limit),
                "pruned": budget.cost.value(budget.cost.of(layers)),
                **budget.cost.facts,
            }
            for budget in self.each
        ]


def can_grow(change: Sequence[int], left: Sequence[int]) -> bool:
    """True where ``change`` exceeds nothing that is ``left``; a budget that it relieves may be empty."""
    return all(more <= max(free, 0) for more, free in zip(change, left, strict=True))
