"""Whether budgets can be met at all, known from shapes alone, before a model is loaded."""

from __future__ import annotations

from prunekit.errors import PrunekitError
from prunekit.plan.budgets import PARAMETERS, Budget, Budgets
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import Heads, ModelShape
from prunekit.pruning.allocation.knapsack import choose


def check_protected(source: ModelShape, protected: frozenset[int]) -> None:
    """Raises PrunekitError where a layer is to be protected that the model does not have."""
    beyond = sorted(index for index in protected if index < 0 or index >= source.num_hidden_layers)
    if beyond:
        raise PrunekitError(
            f"Layer {beyond[0]} can't be protected: the model has layers 0 to {source.num_hidden_layers - 1}."
        )


def check_reachable(
    source: ModelShape, budgets: Budgets, rounding: Rounding, units: tuple[str, ...], protected: frozenset[int]
) -> None:
    """Raises PrunekitError, saying what is possible, where not even the floors fit a budget, or all of them at once."""
    check_protected(source, protected)
    # No budget grows where an FFN becomes narrower, so the floors are best for all of them. Heads may be a matter of
    # choice: fewer query heads against fewer KV heads.
    widths = [layer.intermediate_size for layer in rounding.floor(source, units, protected).layers]
    heads: list[tuple[Heads, ...]] = [
        ((layer.num_key_value_heads, layer.group_size),)
        if index in protected
        else rounding.attention_choices(layer, units)
        for index, layer in enumerate(source.layers)
    ]
    rest = [
        budget.cost.fixed + sum(budget.cost.ffn(index, width) for index, width in enumerate(widths))
        for budget in budgets
    ]
    costs = [
        [[budget.cost.attention(index, each) for budget in budgets] for each in choices]
        for index, choices in enumerate(heads)
    ]
    for place, budget in enumerate(budgets):
        least = rest[place] + sum(min(cost[place] for cost in layer) for layer in costs)
        if least > budget.limit:
            raise _out_of_reach(source, budget, least)
    left = [budget.limit - spent for budget, spent in zip(budgets, rest, strict=True)]
    if len(budgets) > 1 and choose([[0.0] * len(layer) for layer in costs], costs, left) is None:
        raise PrunekitError(
            f"Each of {budgets.text} can be met, but not all at once: with these multiples fewer query heads and fewer "
            "KV heads exclude each other; ask for a larger one."
        )


def _out_of_reach(source: ModelShape, budget: Budget, least: int) -> PrunekitError:
    advice = (
        "Ask for at least that, or lower ffn_multiple and min_ffn, protect fewer layers, or prune more kinds of unit."
    )
    share = _up(least / budget.dense)
    if budget.cost.name == PARAMETERS:
        blocks = _up((least - source.embedding_parameters) / source.block_parameters)
        return PrunekitError(
            f"The target of {budget.limit:,} parameters is out of reach: embeddings take "
            f"{source.embedding_parameters:,}, and with these floors, multiples and protected layers the smallest "
            f"possible is {least:,} (--params {share}, --blocks {blocks}). {advice}"
        )
    option = budget.asked.partition(" ")[0]
    return PrunekitError(
        f"{budget.asked} asks for at most {budget.cost.text(budget.limit)} of {budget.cost.words}, which is out of "
        f"reach: with these floors, multiples and protected layers the least possible is {budget.cost.text(least)} "
        f"({option} {share}). {advice}"
    )


def _up(share: float) -> str:
    """A share rounded up at the fourth digit, so that asking for it succeeds."""
    return f"{min(int(share * 10_000) + 1, 9_999) / 10_000:.4f}"
