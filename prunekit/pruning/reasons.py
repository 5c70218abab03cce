"""Why each layer is as wide as it is: what one unit of the budget is worth there, and elsewhere.

Widths of least summed loss obey one rule: nowhere can the budget be spent better. The best that one unit more could
bring anywhere is its shadow price (in Lagrange's sense, for widths that go in steps); a sub-layer is as wide as it is
because the next step there brings less than that, and the last one brought more.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prunekit.models.sublayers import KINDS
from prunekit.plan.budgets import FLOPS, KV_BYTES, LATENCY, PARAMETERS, Budget
from prunekit.plan.shape import Heads, Kind, LayerShape, ModelShape
from prunekit.pruning.allocation.base import Problem
from prunekit.pruning.curves.loss_curves import LayerCurves
from prunekit.pruning.curves.text import OF_EACH_TEXT
from prunekit.pruning.stability import FEWEST, Stability, stability

# A text that pays this many times what the mean of all does is worth a word, where it differs from the others by more
# than so many standard errors.
PAYS_MORE, SURE = 1.25, 2.0


@dataclass(frozen=True)
class Reason:
    """Of one sub-layer, in nats a token: ``loss`` at the width that it has, ``loss_without`` it, or with the ``least``
    of it that its curve ends at; that is of the curve, unless the plan may drop it (``without_measured``).
    ``narrower`` is what one unit of the budget less would cost here, ``wider`` what one more would save; None where
    there is no such step. ``alone`` is measured: the divergence with this sub-layer alone cut to 5/8, with its standard
    error, ``rank`` (from 1) among those of all layers and the ranks between which nine of ten resamples put it;
    ``texts`` has the same of each text of a mix, and ``pays_most`` names the one that pays more than the others do by
    more than chance. None and empty where it was not measured, or none does."""

    kept: int | Heads
    dense: int | Heads
    loss: float
    loss_without: float
    narrower: float | None
    wider: float | None
    least: int | Heads = 0
    without_measured: bool = False
    alone: float | None = None
    alone_standard_error: float | None = None
    rank: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    texts: Mapping[str, float] | None = None
    pays_most: str | None = None

    @property
    def whole(self) -> bool:
        return self.kept == self.dense

    @property
    def gone(self) -> bool:
        return self.kept in (0, (0, 0))


def explain(
    source: ModelShape,
    problem: Problem,
    curves: Sequence[LayerCurves],
    shapes: Sequence[LayerShape],
    texts: Sequence[str],
    bytes_per_parameter: int,
    mix: Sequence[str] = (),
) -> dict[str, Any]:
    """Why each layer of the plan has its shape of ``shapes`` (one for each layer of ``source``), as JSON values.

    ``texts`` names the text of each sequence that the scale of the ``curves`` was measured on, ``mix`` all that were
    calibrated on (none: those). Prices are by the budget
    of which least is left, in its ``unit``: MB of weights, MFLOP a token, KB of KV cache a token, or µs.
    """
    budget = _tightest(problem, source, shapes)
    unit, size = _unit(budget, bytes_per_parameter)
    prices_in = _Prices(source, problem, budget, size)
    orders: dict[Kind, Stability | None] = {}
    made: list[dict[Kind, Reason]] = [
        {"attention": prices_in.of_attention(index, curve, shape), "ffn": prices_in.of_ffn(index, curve, shape)}
        for index, (curve, shape) in enumerate(zip(curves, shapes, strict=True))
    ]
    notes = []
    for kind in KINDS:
        orders[kind] = _measured(made, kind, curves, texts)
        if orders[kind] is None:
            notes.append(_unmeasured(kind, curves))
    notes += _untold(texts, mix or texts)
    prices = [each.wider for layer in made for each in layer.values() if each.wider is not None]
    shadow = max(prices, default=None)
    return {
        "budget": budget.cost.name,
        "unit": unit,
        "shadow_price": shadow,
        "kendall_tau": {kind: None if order is None else order.tau for kind, order in orders.items()},
        "sequences": len(texts),
        "not_measured": notes,
        "layers": [
            {
                "index": index,
                "words": words(layer, unit, shadow, index in problem.protected, len(made)),
                **{kind: _told(layer[kind]) for kind in KINDS},
            }
            for index, layer in enumerate(made)
        ],
    }


def _told(reason: Reason) -> dict[str, Any]:
    """As a plan that was read from its file has it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(reason).items()}


def _tightest(problem: Problem, source: ModelShape, shapes: Sequence[LayerShape]) -> Budget:
    """The budget that decides: of which the smallest share is left."""
    return min(problem.held(source), key=lambda budget: (budget.limit - budget.cost.of(shapes)) / max(1, budget.limit))


def _unit(budget: Budget, bytes_per_parameter: int) -> tuple[str, float]:
    """In what a price is told, and how much of the budget that is."""
    return {
        PARAMETERS: ("MB of weights", 1e6 / bytes_per_parameter),
        FLOPS: ("MFLOP a token", 1e6),
        KV_BYTES: ("KB of KV cache a token", 1e3),
        LATENCY: ("µs", 1e3),
    }[budget.cost.name]


@dataclass(frozen=True)
class _Prices:
    """What steps of sub-layers of ``source`` cost of the ``budget``, in units of ``size``."""

    source: ModelShape
    problem: Problem
    budget: Budget
    size: float

    def of_ffn(self, index: int, curve: LayerCurves, shape: LayerShape) -> Reason:
        problem, cost, ffn = self.problem, self.budget.cost, curve.ffn
        dense, width = self.source.layers[index].intermediate_size, shape.intermediate_size
        steps: list[int] = []
        if index not in problem.protected and "ffn" in problem.units and width:
            narrower = problem.rounding.ffn_down(width - 1, dense)
            steps = [narrower] * (narrower < width) + [problem.rounding.ffn_up(width + 1, dense)] * (width < dense)
        prices = {
            other > width: self._price(
                ffn.loss_at(width) - ffn.loss_at(other), cost.ffn(index, other) - cost.ffn(index, width)
            )
            for other in steps
        }
        return Reason(
            width,
            dense,
            ffn.loss_at(width),
            ffn.loss_at(0),
            prices.get(False),
            prices.get(True),
            without_measured="ffn-layer" in problem.units,
        )

    def of_attention(self, index: int, curve: LayerCurves, shape: LayerShape) -> Reason:
        problem, cost, dense = self.problem, self.budget.cost, self.source.layers[index]
        heads = (shape.num_key_value_heads, shape.group_size)
        whole = (dense.num_key_value_heads, dense.group_size)
        now = curve.heads[heads].loss
        cheaper: list[float] = []
        dearer: list[float] = []
        choices = () if index in problem.protected else problem.rounding.attention_choices(dense, problem.units)
        for other in choices:
            spent = cost.attention(index, other) - cost.attention(index, heads)
            price = self._price(now - curve.heads[other].loss, spent)
            if price is not None:
                (dearer if spent > 0 else cheaper).append(price)
        # Where the whole may not go, curves of heads end at one of them.
        least = min(curve.heads, key=lambda each: each[0] * each[1])
        lost = curve.heads[least].loss
        return Reason(
            heads,
            whole,
            now,
            lost,
            min(cheaper, default=None),
            max(dearer, default=None),
            least=least,
            without_measured="attention-layer" in problem.units and not least[0],
        )

    def _price(self, saved: float, spent: int) -> float | None:
        """Nats a token that one unit more saves, or one less costs; None where that changes nothing of the budget."""
        return saved / (spent / self.size) if spent else None


def _measured(
    made: list[dict[Kind, Reason]], kind: Kind, curves: Sequence[LayerCurves], texts: Sequence[str]
) -> Stability | None:
    """Put what was measured of ``kind`` alone into ``made``, and return how sure its order is."""
    alone = [curve.alone.get(kind, ()) for curve in curves]
    if not texts or any(len(each) != len(texts) for each in alone):
        return None
    order = stability(list(zip(*alone, strict=True)))
    several = len(set(texts)) > 1
    for index, values in enumerate(alone):
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for text, value in zip(texts, values, strict=True):
            groups[text].append(value)
        ranks: dict[str, Any] = {}
        if order is not None:
            places = (order.ranks[index], order.low[index], order.high[index])
            ranks = dict(zip(("rank", "rank_low", "rank_high"), (place + 1 for place in places), strict=True))
        made[index][kind] = replace(
            made[index][kind],
            alone=mean,
            alone_standard_error=(spread / len(values)) ** 0.5 if len(values) > 1 else None,
            texts={text: sum(some) / len(some) for text, some in groups.items()} if several else None,
            pays_most=_payer(groups, mean) if several else None,
            **ranks,
        )
    return order


def _payer(groups: Mapping[str, Sequence[float]], mean: float) -> str | None:
    """The text that pays most, where that is much more than the ``mean``, and than the other texts pay by more than two
    standard errors of the difference."""
    text, own = max(groups.items(), key=lambda each: statistics.fmean(each[1]))
    others = [value for name, values in groups.items() if name != text for value in values]
    if min(len(own), len(others)) < OF_EACH_TEXT or statistics.fmean(own) < PAYS_MORE * mean:
        return None
    error = (statistics.variance(own) / len(own) + statistics.variance(others) / len(others)) ** 0.5
    return text if statistics.fmean(own) - statistics.fmean(others) > SURE * error else None


def _untold(texts: Sequence[str], mix: Sequence[str]) -> list[str]:
    """Of which texts of the ``mix`` too few sequences were measured on to say whether they pay most."""
    counts = {name: texts.count(name) for name in dict.fromkeys(mix)}
    few = [f"{name} ({count})" for name, count in counts.items() if count < OF_EACH_TEXT]
    if len(counts) < 2 or not few:
        return []
    return [
        f"Whether one text of the mix pays most: that needs {OF_EACH_TEXT} sequences of each, and fewer were left of "
        f"{', '.join(few)}. Give more text (the setting sequences)."
    ]


def _unmeasured(kind: Kind, curves: Sequence[LayerCurves]) -> str:
    what = "FFN" if kind == "ffn" else kind
    if all(kind in curve.alone for curve in curves):
        return f"How sure the order of layers by their {what} is: that needs {FEWEST} sequences of text and 2 layers."
    return (
        f"What a cut of one {what} alone does: one is too small to cut, or its curve was kept by an earlier version of "
        "prunekit."
    )


def words(layer: Mapping[Kind, Reason], unit: str, shadow: float | None, protected: bool, layers: int) -> str:
    """A layer's reasons in short sentences, the FFN's first."""
    said = []
    for kind in reversed(KINDS):
        reason = layer[kind]
        because = f"{_because(reason, unit, shadow, protected)}{_without(reason)}"
        said.append(f"{_name(kind, reason)}: {because}{_seen(reason, layers)}")
    return " ".join(said)


def _name(kind: Kind, reason: Reason) -> str:
    kept, dense = reason.kept, reason.dense
    if isinstance(kept, tuple) and isinstance(dense, tuple):
        kept, dense = kept[0] * kept[1], dense[0] * dense[1]
    what = "FFN" if kind == "ffn" else "Query heads"
    return f"{what} whole" if reason.whole else f"{what} {kept:,} of {dense:,}"


def _because(reason: Reason, unit: str, shadow: float | None, protected: bool) -> str:
    less, more = reason.narrower, reason.wider
    if protected:
        return "protected, so nothing may go."
    if reason.gone:
        return f"all of it is gone, which costs {_nats(reason.loss)}."
    if less is None and reason.whole:
        return "no smaller size is allowed."
    if reason.whole and less is not None:
        dearer = f", {less / shadow:.1f} times the best elsewhere" if shadow else ""
        return f"one {unit} less would cost {_nats(less)}{dearer}."
    last = "no smaller size is allowed" if less is None else f"one {unit} less would cost {_nats(less)}"
    if more is None:
        return f"{last}."
    first = ", and here one more helps most" if more == shadow else ""
    return f"{last}, one more save {_nats(more)}{first}."


def _without(reason: Reason) -> str:
    """What it would cost if it went, as far as it can go."""
    if reason.gone or reason.kept == reason.least:
        return ""
    heads = reason.least[0] * reason.least[1] if isinstance(reason.least, tuple) else 0
    how = (
        "Gone, it" if not isinstance(reason.least, tuple) else "Gone, they" if not heads else f"With {heads} left they"
    )
    lost = _nats(reason.loss_without)
    lost = f"{lost} (measured)" if reason.without_measured else f"about {lost} (by the curve)"
    return f" {how} would cost {lost}{'' if reason.whole else f', in place of {_nats(reason.loss)}'}."


def _seen(reason: Reason, layers: int) -> str:
    """What the measurement of this sub-layer alone adds."""
    said = ""
    if reason.rank is not None:
        sure = "" if reason.rank_low == reason.rank_high else f" ({reason.rank_low} to {reason.rank_high} by chance)"
        said += f" Cut alone, its loss is number {reason.rank}{sure} of {layers}, the largest first."
    if reason.pays_most and reason.texts and reason.alone:
        said += f" {reason.pays_most} pays most: {reason.texts[reason.pays_most] / reason.alone:.1f} times the mean."
    return said


def _nats(value: float) -> str:
    """Thousandths of a nat a token: that is the size of what one layer loses."""
    thousandths = value * 1e3
    return f"{thousandths:,.0f} mnats" if abs(thousandths) >= 10 else f"{thousandths:.2g} mnats"
