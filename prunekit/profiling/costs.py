"""What answers cost on the machine that was timed: the times of a bench, and the user's prices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunekit.profiling.bench_report import BatchResult, BenchReport
from prunekit.profiling.energy import Energy
from prunekit.profiling.prices import Prices, throughput
from prunekit.utils.timing import Summary

HOW = (
    "from the measured medians and the prices: one process that answers one batch after the other, at these lengths of "
    "prompt and answer. A loaded server answers at other rates"
)


@dataclass(frozen=True)
class Pair:
    """One figure of both models; None where prices or measurements do not tell."""

    dense: float | None
    pruned: float | None


@dataclass(frozen=True)
class Cost:
    """At one batch size and one ``utilisation``, the share of an hour that is used. Rates are those of a machine that
    is always busy; dollars are of the hour, whatever it is made of."""

    batch: int
    utilisation: float
    tokens_per_second: Pair
    requests_per_second: Pair
    dollars_per_million_tokens: Pair
    dollars_per_request: Pair
    believed: bool


@dataclass(frozen=True)
class Costs:
    """The costs of all batch sizes and utilisations. ``prices`` are the user's; ``electricity`` are dollars a million
    output tokens of the energy that was measured or estimated alone."""

    prices: Prices
    rows: tuple[Cost, ...]
    electricity: Pair

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "status": "estimated",
            "how": HOW,
            "prices": self.prices.to_dict(),
            "dollars_an_hour": self.prices.dollars_an_hour,
            "left_out": self.prices.left_out,
            "electricity_dollars_per_million_tokens": asdict(self.electricity),
            "rows": [asdict(each) for each in self.rows],
        }


def costs(report: BenchReport, prices: Prices) -> Costs:
    """What a million output tokens and an answered request cost with each model of ``report``, by the formulas of
    :class:`~prunekit.profiling.prices.Prices`. A request is one prompt with its answer, of the lengths that were
    timed."""
    return Costs(
        prices,
        tuple(
            _cost(result, report.config.tokens, prices, share)
            for result in report.results
            for share in prices.utilisations
        ),
        _electricity(report.energy, prices),
    )


def _electricity(energy: Energy | None, prices: Prices) -> Pair:
    spent = (None, None) if energy is None else (energy.dense, energy.pruned)
    dense, pruned = (
        None if each is None else prices.energy_per_million_tokens(each.joules_per_token) for each in spent
    )
    return Pair(dense, pruned)


def _cost(result: BatchResult, tokens: int, prices: Prices, share: float) -> Cost:
    def rates(ttft: Summary, tpot: Summary) -> tuple[float, float]:
        return throughput(result.batch, tokens, ttft.median, tpot.median)

    dense = rates(result.ttft.dense, result.tpot.dense)
    pruned = rates(result.ttft.pruned, result.tpot.pruned)
    return Cost(
        result.batch,
        share,
        Pair(dense[0], pruned[0]),
        Pair(dense[1], pruned[1]),
        Pair(prices.per_million_tokens(dense[0], share), prices.per_million_tokens(pruned[0], share)),
        Pair(prices.per_request(dense[1], share), prices.per_request(pruned[1], share)),
        result.ttft.believed and result.tpot.believed,
    )
