"""Targets: what the pruned model may cost at most, as it is asked for by options, and as budgets of a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prunekit.errors import PrunekitError
from prunekit.plan.budgets import FLOPS, KV_BYTES, PARAMETERS, Budget, Budgets, Cost, parameter_cost, shape_cost
from prunekit.plan.shape import ModelShape

if TYPE_CHECKING:
    from prunekit.plan.latency_table import LatencyTable
    from prunekit.plan.methods import Method

_COUNT = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_FLOPS = {**_COUNT, "G": 10**9, "T": 10**12}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NANOSECONDS = {"S": 10**9, "MS": 10**6, "US": 10**3}

_PERCENT = re.compile(r"([0-9]*\.?[0-9]+)\s*%")
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][0-9]{1,3})?)\s*([A-Za-z]*)")

Option = Literal["params", "blocks", "weights", "flops", "kv-cache", "latency"]
OF_PARAMETERS = ("params", "blocks", "weights")
# The longest context that a count of FLOPs is asked for.
_LONGEST = 10**9


def parse_size(text: str, option: str) -> int:
    """``"4GiB"`` → bytes. Raises PrunekitError, naming ``option``, where it is no size."""
    match = _NUMBER.fullmatch(text.strip())
    if not match or match[2].upper() not in _BYTES or not 0 < float(match[1]) < 1e12:
        raise PrunekitError(f"{option} {text} is not a size; write a number and a unit, such as 4GiB or 800MB.")
    return int(float(match[1]) * _BYTES[match[2].upper()])


def parse_count(text: str, option: str) -> int:
    """``"10M"`` → 10,000,000. Raises PrunekitError, naming ``option``, where it is no number of things."""
    match = _NUMBER.fullmatch(text.strip())
    if not match or match[2].upper() not in _COUNT or not 1 <= float(match[1]) * _COUNT[match[2].upper()] < 1e15:
        raise PrunekitError(f"{option} {text} is no number; write one such as 500000, 10M or 1.5B.")
    return int(float(match[1]) * _COUNT[match[2].upper()])


@dataclass(frozen=True)
class Goal:
    """At most ``value``: a share of what the dense model costs, or a number of parameters, FLOPs, bytes or
    nanoseconds, as ``option`` says. ``text`` is the option as it was given."""

    option: Option
    value: float
    is_share: bool
    text: str

    def limit(self, dense: int) -> int:
        """The most units, where the dense model has ``dense``."""
        # A hair of tolerance: 0.8 · n must not lose a parameter to binary fractions. And 1e999 is infinite.
        return int(min(self.value * dense if self.is_share else self.value, 2.0**62) + 1e-6)


@dataclass(frozen=True)
class Target:
    """All that was asked for; every goal must be met. ``context`` is how many earlier tokens a token attends to where
    FLOPs are counted; ``table`` tells latencies."""

    goals: tuple[Goal, ...]
    context: int = 0
    table: LatencyTable | None = None

    @property
    def text(self) -> str:
        return " ".join(goal.text for goal in self.goals)

    def budget(self, dense: ModelShape, bytes_per_parameter: float) -> int:
        """The most parameters that the pruned model may have, by the goals that say so. Raises PrunekitError where
        nothing would be pruned."""
        limit = self.budgets(dense, bytes_per_parameter).parameters
        return dense.parameters if limit is None else limit

    def budgets(self, dense: ModelShape, bytes_per_parameter: float, counted: ModelShape | None = None) -> Budgets:
        """The goals as budgets for a model of shape ``dense``, whose pruned form is counted as ``counted`` (with biases
        that it will gain). The KV cache is counted at the weights' precision.

        Raises PrunekitError where nothing would be pruned, or the latency table is of another model.
        """
        made = Budgets(tuple(self._budget(goal, dense, bytes_per_parameter, counted or dense) for goal in self.goals))
        if all(budget.limit >= budget.dense for budget in made):
            raise PrunekitError(_nothing_to_prune(made.each[0], dense, bytes_per_parameter))
        return made

    def check_method(self, method: Method) -> None:
        """Raises PrunekitError where ``method`` can't keep to one of the goals."""
        other = next((goal for goal in self.goals if goal.option not in OF_PARAMETERS), None)
        if other is not None and not method.allocation.draws_curves:
            raise PrunekitError(
                f"{other.text} needs the allocation that weighs every width by its cost, optimal, which "
                f"--method prunekit has; {method.name} takes --params, --blocks and --weights only."
            )

    def _budget(self, goal: Goal, dense: ModelShape, bytes_per_parameter: float, counted: ModelShape) -> Budget:
        if goal.option == "latency":
            assert self.table is not None
            self.table.check(dense)
            cost = self.table.cost()
            before = cost.of(dense.layers)
            return Budget(cost, goal.limit(before), before, goal.text)
        if goal.option in OF_PARAMETERS:
            return Budget(
                parameter_cost(counted), _parameters(goal, dense, bytes_per_parameter), dense.parameters, goal.text
            )
        formulas: dict[str, tuple[str, Callable[[ModelShape], int]]] = {
            "flops": (FLOPS, lambda shape: shape.flops_per_token(self.context)),
            "kv-cache": (KV_BYTES, lambda shape: shape.kv_bytes_per_token(bytes_per_parameter)),
        }
        name, formula = formulas[goal.option]
        facts = {"context": self.context} if name == FLOPS else {"bytes_per_element": bytes_per_parameter}
        before = formula(dense)
        made: Cost = shape_cost(name, counted, formula, facts)
        return Budget(made, goal.limit(before), before, goal.text)


def _parameters(goal: Goal, dense: ModelShape, bytes_per_parameter: float) -> int:
    if goal.option == "blocks":
        return int(goal.value * dense.block_parameters + dense.embedding_parameters + 1e-6)
    if goal.option == "weights":
        return int(goal.value / bytes_per_parameter + 1e-6)
    return goal.limit(dense.parameters)


def _nothing_to_prune(budget: Budget, dense: ModelShape, bytes_per_parameter: float) -> str:
    if budget.cost.name == PARAMETERS:
        has = f"has {dense.parameters:,} parameters ({dense.weight_bytes(bytes_per_parameter):,} bytes)"
    else:
        has = f"has {budget.cost.text(budget.dense)} of {budget.cost.words}"
    return f"The model {has}, so {budget.asked} leaves nothing to prune; ask for less."


def parse_target(
    params: str | None = None,
    blocks: str | None = None,
    weights: str | None = None,
    *,
    flops: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    latency: str | None = None,
    table: LatencyTable | None = None,
) -> Target:
    """The goals that are given. Raises PrunekitError where there is none, or one makes no sense."""
    options: dict[Option, str | None] = {
        "params": params,
        "blocks": blocks,
        "weights": weights,
        "flops": flops,
        "kv-cache": kv_cache,
        "latency": latency,
    }
    goals = tuple(_goal(option, text) for option, text in options.items() if text)
    if not goals:
        raise PrunekitError(
            "Say at least one target: --params 0.8 (share of all parameters), --params 1.0B (a number of them), "
            "--blocks 0.79 (share of the decoder blocks), --weights 4GiB, --flops 0.75, --kv-cache 0.5, or --latency "
            "0.7 with --latency-table."
        )
    if latency and table is None:
        raise PrunekitError(
            f"--latency {latency} needs --latency-table FILE; measure one with `prunekit latency-table MODEL -o FILE`."
        )
    if table is not None and not latency:
        raise PrunekitError("--latency-table says what widths take, but no latency is asked for; add --latency 0.7.")
    if context is not None and not flops:
        raise PrunekitError("--context says at which length FLOPs are counted, but none are asked for; add --flops.")
    if context is not None and not 0 <= context <= _LONGEST:
        raise PrunekitError(f"--context must be a number of tokens from 0 to {_LONGEST:,}, got {context}.")
    return Target(goals, context or 0, table)


def _goal(option: Option, text: str) -> Goal:
    said = f"--{option} {text}"
    percent = _PERCENT.fullmatch(text.strip())
    if percent and option != "weights":
        if not 0 < float(percent[1]) < 100:
            raise PrunekitError(f"{said} is not a target; a share lies above 0 % and below 100 %, as 80% does.")
        # As text, so that 79% is the share that 0.79 is.
        return Goal(option, float(f"{percent[1]}e-2"), True, said)
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise PrunekitError(f"{said} is not a target; write a share like 0.8, a count like 1.0B or a size like 4GiB.")
    number, unit = float(match[1]), match[2].upper()
    if option == "weights":
        return Goal(option, parse_size(text, "--weights"), False, said)
    if unit == "" and number < 1:
        if number <= 0:
            raise PrunekitError(f"{said} must keep something: a share lies between 0 and 1.")
        return Goal(option, number, True, said)
    if option == "blocks":
        raise PrunekitError(f"{said} is not a share; write a number between 0 and 1, such as 0.79.")
    if option == "kv-cache":
        if unit == "":
            raise PrunekitError(f"{said} is neither a share below 1 nor a size a token such as 12KB.")
        return Goal(option, parse_size(text, "--kv-cache"), False, said)
    if option == "latency":
        if unit not in _NANOSECONDS or not 0 < number < 1e12:
            raise PrunekitError(f"{said} is neither a share below 1 nor a time such as 12ms or 0.5s.")
        return Goal(option, number * _NANOSECONDS[unit], False, said)
    counts, example = (_COUNT, "350M or 1.0B") if option == "params" else (_FLOPS, "200M or 1.5G")
    if unit not in counts or number * counts[unit] < 2:
        raise PrunekitError(f"{said} is neither a share below 1 nor a count such as {example}.")
    return Goal(option, number * counts[unit], False, said)
