"""What an allocation is: it decides how wide every layer becomes, within a budget and the widths allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunekit.budgets import Budgets
from prunekit.errors import PrunekitError
from prunekit.plan import LayerKeep
from prunekit.rounding import Rounding
from prunekit.session import Session
from prunekit.shape import ModelShape

Advance = Callable[..., None]


@dataclass(frozen=True)
class Problem:
    """What an allocation is asked to do. ``budget`` is the most parameters the whole model may have; ``budgets``, which
    `optimal` and `search` keep to, all that it may cost at most (None: parameters alone).

    ``units`` names what may be pruned: "ffn", "kv" (whole KV groups), "query" (query heads, equally in every group).
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
    generations: int = 20
    offspring: int = 8
    starts: tuple[str, ...] = ("optimal", "global")
    budgets: Budgets | None = None

    def held(self, source: ModelShape) -> Budgets:
        """All budgets of a model of shape ``source``."""
        return self.budgets or Budgets.of_parameters(source, self.budget)

    def __post_init__(self) -> None:
        unknown = set(self.units) - {"ffn", "kv", "query"}
        if unknown or not self.units:
            raise PrunekitError(f"--prune takes ffn, kv and query, separated by commas; got {','.join(self.units)!r}.")
        if not 0 <= self.attention_ratio <= 10:
            raise PrunekitError(f"The attention ratio must lie between 0 and 10, got {self.attention_ratio}.")
        if not 1 <= self.steps <= 10_000:
            raise PrunekitError(f"The number of steps must lie between 1 and 10000, got {self.steps}.")
        if not 0 <= self.amplitude <= 1:
            raise PrunekitError(f"The amplitude must lie between 0 and 1, got {self.amplitude}.")
        if not 0 <= self.generations <= 100_000 or not 1 <= self.offspring <= 10_000:
            raise PrunekitError(
                f"A search has 0 to 100000 generations of 1 to 10000 offspring, got {self.generations} of "
                f"{self.offspring}."
            )
        unknown_starts = set(self.starts) - {"optimal", "global", "uniform", "adapt"}
        if unknown_starts or not self.starts:
            raise PrunekitError(
                f"A search starts from optimal, global, uniform or adapt; got {','.join(self.starts)!r}."
            )


@dataclass(frozen=True)
class Allocated:
    """What every layer keeps (dropped layers are missing), and what was measured on the way, a record a step."""

    keeps: tuple[LayerKeep, ...]
    history: tuple[dict[str, Any], ...] = ()


Allocation = Callable[[Session, Problem, Advance], Allocated]

ALLOCATION: dict[str, Allocation] = {}


def allocation(name: str) -> Allocation:
    """The allocation ``name``. Raises PrunekitError with the names there are."""
    if name not in ALLOCATION:
        raise PrunekitError(f"There is no allocation {name!r}; choose one of: {', '.join(ALLOCATION)}.")
    return ALLOCATION[name]
