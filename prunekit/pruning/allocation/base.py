"""What an allocation is: it decides how wide every layer becomes, within a budget and the widths allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from prunekit.errors import PrunekitError
from prunekit.plan import LayerKeep
from prunekit.plan.allocations import MEASURED, check_unit_names
from prunekit.plan.budgets import Budgets
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import ModelShape
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.curves.loss_curves import LayerCurves
from prunekit.utils.advance import Advance


@dataclass(frozen=True)
class Problem:
    """What an allocation is asked to do. ``budget`` is the most parameters the whole model may have; ``budgets``, which
    `optimal` keeps to, all that it may cost at most (None: parameters alone).

    ``units`` names what may be pruned: "ffn", "kv" (whole KV groups), "query" (query heads, equally in every group),
    "attention-layer" and "ffn-layer" (a layer's whole attention, whole FFN); the last two only by measured curves.
    """

    budget: int
    rounding: Rounding
    units: tuple[str, ...] = ("ffn", "kv")
    protected: frozenset[int] = frozenset()
    budgets: Budgets | None = None

    def held(self, source: ModelShape) -> Budgets:
        """All budgets of a model of shape ``source``."""
        return self.budgets or Budgets.of_parameters(source, self.budget)

    def __post_init__(self) -> None:
        check_unit_names(self.units)


@dataclass(frozen=True)
class Allocated:
    """What every layer keeps (dropped layers are missing), and what was measured on the way, a record a step; the loss
    ``curves`` that decided, where there are some."""

    keeps: tuple[LayerKeep, ...]
    history: tuple[dict[str, Any], ...] = ()
    curves: tuple[LayerCurves, ...] = ()


def check_compensable(units: tuple[str, ...]) -> None:
    """Raises PrunekitError where biases can't make good for what goes."""
    if others := [unit for unit in units if unit in MEASURED]:
        raise PrunekitError(
            f"Biases make good for units that are cut one by one, which {others[0]} doesn't do; set refit=true, or "
            f"leave {others[0]} out of units."
        )


def without_empty(keeps: Iterable[LayerKeep]) -> tuple[LayerKeep, ...]:
    """A layer that lost both its sub-layers is dropped."""
    return tuple(keep for keep in keeps if len(keep.shape.removed) < 2)


class Allocation(Protocol):
    """Decides what every layer keeps. ``config`` is the allocation's own (prunekit.plan.allocations); None: defaults.
    ``advance`` is called as it goes."""

    def __call__(self, session: Session, problem: Problem, advance: Advance, config: Any = None) -> Allocated: ...


ALLOCATION: dict[str, Allocation] = {}


def allocation(name: str) -> Allocation:
    """The allocation ``name``. Raises PrunekitError with the names there are."""
    if name not in ALLOCATION:
        raise PrunekitError(f"There is no allocation {name!r}; choose one of: {', '.join(ALLOCATION)}.")
    return ALLOCATION[name]
