"""What an allocation is: it decides how wide every layer becomes, within a budget and the widths allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan import LayerKeep
from prunekit.plan.budgets import Budgets
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import ModelShape
from prunekit.pruning.allocation.session import Session

Advance = Callable[..., None]

SCORED = ("ffn", "kv", "query")
"""What every allocation can prune."""
MEASURED = ("attention-layer", "ffn-layer")
"""What is priced by loss curves alone."""
CURVES = "optimal"
"""The allocation that draws them."""


@dataclass(frozen=True)
class Problem:
    """What an allocation is asked to do. ``budget`` is the most parameters the whole model may have; ``budgets``, which
    `optimal` keeps to, all that it may cost at most (None: parameters alone).

    ``units`` names what may be pruned: "ffn", "kv" (whole KV groups), "query" (query heads, equally in every group),
    "attention-layer" and "ffn-layer" (a layer's whole attention, whole FFN); the last two only by measured curves.
    ``attention_ratio`` is how fast attention shrinks relative to the FFNs: 1 alike, 0 never.
    """

    budget: int
    rounding: Rounding
    units: tuple[str, ...] = ("ffn", "kv")
    protected: frozenset[int] = frozenset()
    attention_ratio: float = 1.0
    steps: int = 50
    amplitude: float = 0.02
    standardise: bool = False
    budgets: Budgets | None = None

    def held(self, source: ModelShape) -> Budgets:
        """All budgets of a model of shape ``source``."""
        return self.budgets or Budgets.of_parameters(source, self.budget)

    def __post_init__(self) -> None:
        unknown = set(self.units) - {*SCORED, *MEASURED}
        if unknown or not self.units:
            raise PrunekitError(
                f"--prune takes {', '.join((*SCORED, *MEASURED))}, separated by commas; got {','.join(self.units)!r}."
            )
        if not 0 <= self.attention_ratio <= 10:
            raise PrunekitError(f"The attention ratio must lie between 0 and 10, got {self.attention_ratio}.")
        if not 1 <= self.steps <= 10_000:
            raise PrunekitError(f"The number of steps must lie between 1 and 10000, got {self.steps}.")
        if not 0 <= self.amplitude <= 1:
            raise PrunekitError(f"The amplitude must lie between 0 and 1, got {self.amplitude}.")


@dataclass(frozen=True)
class Allocated:
    """What every layer keeps (dropped layers are missing), and what was measured on the way, a record a step."""

    keeps: tuple[LayerKeep, ...]
    history: tuple[dict[str, Any], ...] = ()


def check_units(method: str, units: tuple[str, ...]) -> None:
    """Raises PrunekitError where the allocation ``method`` has no price for one of ``units``."""
    priceless = [unit for unit in units if unit in MEASURED]
    if priceless and method != CURVES:
        raise PrunekitError(
            f"--prune {priceless[0]} is decided by measured loss curves, which --allocate {method} has none of; take "
            f"--allocate {CURVES} (the default method's), or leave {priceless[0]} out."
        )


def check_compensable(units: tuple[str, ...]) -> None:
    """Raises PrunekitError where biases can't make good for what goes."""
    if others := [unit for unit in units if unit in MEASURED]:
        raise PrunekitError(
            f"Biases make good for units that are cut one by one, which {others[0]} doesn't do; add --refit, or leave "
            f"{others[0]} out of --prune."
        )


def without_empty(keeps: Iterable[LayerKeep]) -> tuple[LayerKeep, ...]:
    """A layer that lost both its sub-layers is dropped."""
    return tuple(keep for keep in keeps if len(keep.shape.removed) < 2)


Allocation = Callable[[Session, Problem, Advance], Allocated]

ALLOCATION: dict[str, Allocation] = {}


def allocation(name: str) -> Allocation:
    """The allocation ``name``. Raises PrunekitError with the names there are."""
    if name not in ALLOCATION:
        raise PrunekitError(f"There is no allocation {name!r}; choose one of: {', '.join(ALLOCATION)}.")
    return ALLOCATION[name]
