"""What answers cost at the highest load within the SLO, from the user's prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunekit.profiling.prices import Prices
from prunekit.profiling.server.report import ServerReport
from prunekit.profiling.server_costs import AtLoad, Known, ServerCost, break_even, server_cost, unknown


@dataclass(frozen=True)
class Money:
    """Costs by endpoint, in the order of ``ServerReport.served``, each at every share of an hour that is used; and
    ``allowed_rework``: by how many percentage points the share of answers to mend may rise until nothing is saved (at
    the first of these shares; None: one endpoint alone)."""

    costs: tuple[tuple[ServerCost, ...], ...]
    allowed_rework: Known | None

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """JSON values only."""
        made = {name: [each.to_dict() for each in costs] for name, costs in zip(names, self.costs, strict=True)}
        allowed = None if self.allowed_rework is None else self.allowed_rework.to_dict()
        return {"endpoints": made, "allowed_rework_points": allowed}


def money(report: ServerReport, prices: Prices) -> Money:
    """Dollars at the highest load within the SLO; not measured where there is none."""
    loads = [at_load(report, side) for side in range(len(report.served))]
    costs = tuple(tuple(server_cost(at, prices, used) for used in prices.utilisations) for at in loads)
    if len(costs) < 2:
        return Money(costs, None)
    dense, pruned = (each[0].per_request for each in costs)
    if report.capacity is not None and "never broken" in report.capacity.status:
        # Both costs are upper bounds then, and a difference of bounds bounds nothing.
        side = report.capacity.status.index("never broken")
        return Money(
            costs, unknown(f"the SLO of the {report.names[side]} was never broken, so its highest load is more")
        )
    return Money(costs, break_even(dense, pruned, prices))


def at_load(report: ServerReport, side: int) -> AtLoad:
    """Requests and output tokens a second. Tokens are those of the mean answer of exact length."""
    if report.capacity is None:
        none = unknown("no SLO was named, so there is no highest load within it")
        return AtLoad(none, none)
    rate, said = report.capacity.rates[side], report.capacity.words[side]
    if rate is None:
        return AtLoad(unknown(said), unknown(said))
    requests = Known(rate, "measured", said)
    fixed = [load.results[side].tokens for load in report.loads if load.results[side].load.kind != "natural"]
    lengths = [each for each in fixed if each is not None]
    if not lengths:
        return AtLoad(requests, unknown("the server does not count tokens"))
    mean = sum(lengths) / len(lengths)
    return AtLoad(requests, Known(rate * mean, "measured", f"{said}, {mean:.3g} tokens an answer"))
