"""Budgets of several kinds: costs that add up, none ever exceeded, the choice among them the best."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.plan.budgets import Budget, Budgets, Cost, can_grow, parameter_cost, shape_cost
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import Heads, LayerShape, ModelShape
from prunekit.pruning.allocation import ALLOCATION, Problem
from prunekit.pruning.allocation.feasibility import check_reachable
from prunekit.pruning.allocation.knapsack import choose
from prunekit.pruning.allocation.optimal import solve
from tests.support.fake_session import SMOLLM2, FakeSession

EVERYTHING = ("ffn", "kv", "query")


def cost_of(kind: str, source: ModelShape, seed: int = 0) -> Cost:
    if kind == "parameters":
        return parameter_cost(source)
    if kind == "flops":
        return shape_cost("flops_per_token", source, lambda shape: shape.flops_per_token(100))
    if kind == "kv":
        return shape_cost("kv_bytes_per_token", source, lambda shape: shape.kv_bytes_per_token(2))
    return noisy_latency(source, seed)


def noisy_latency(source: ModelShape, seed: int) -> Cost:
    """As a machine might tell it: layers differ, FFNs rise in stairs, and heads are noisy enough to fall at times."""

    def attention(index: int, heads: Heads) -> int:
        noise = random.Random(f"{seed} {index % 2} {heads}").randint(0, 400)
        return 500 + 100 * heads[0] * heads[1] + 60 * heads[0] + noise

    return Cost("latency_seconds", 777, attention, lambda index, width: 300 + 7 * (width // 4) * (1 + index % 2))


def budgets_of(source: ModelShape, asked: dict[str, float], smallest: ModelShape, seed: int = 0) -> Budgets:
    """For each kind a limit that far, from 0 to 1, between the smallest model and the dense one."""
    made = []
    for kind, share in asked.items():
        cost = cost_of(kind, source, seed)
        dense, least = cost.of(source.layers), cost.of(smallest.layers)
        # A measured latency may rise where heads go; the smallest model is always within all limits.
        made.append(Budget(cost, least + int(share * max(0, dense - least)), dense, f"--{kind} {share}"))
    return Budgets(tuple(made))


def solved(
    source: ModelShape, budgets: Budgets, rounding: Rounding, units: tuple[str, ...] = EVERYTHING, seed: int = 0
):
    curves = FakeSession(source, seed).curves(lambda *args, **kwargs: None)
    problem = Problem(budgets.parameters or source.parameters, rounding, units, budgets=budgets)
    made = solve(source, problem, curves)
    return made, sum(curve.loss(each) for curve, each in zip(curves, made, strict=True)), curves


shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 120)), min_size=1, max_size=5).map(
    lambda layers: ModelShape(32, 8, 50, True, tuple(LayerShape(kv * group, kv, ffn) for kv, group, ffn in layers))
)
asked = st.dictionaries(
    st.sampled_from(["parameters", "flops", "kv", "latency"]), st.floats(0, 1), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(0, 200), st.booleans())
def test_costs_are_the_formulas_of_the_shape(source: ModelShape, context: int, bias: bool) -> None:
    source = ModelShape(32, 8, 50, bias, source.layers, qkv_bias=bias, mlp_bias=not bias, qk_norm="all")
    for formula in (
        lambda shape: shape.parameters,
        lambda shape: shape.flops_per_token(context),
        lambda shape: shape.kv_bytes_per_token(2),
    ):
        cost = shape_cost("parameters", source, formula)
        assert cost.of(source.layers) == formula(source)
        assert cost.of(source.layers[:1]) == formula(source.with_layers(source.layers[:1]))


@settings(max_examples=60, deadline=None)
@given(
    shapes,
    asked,
    st.sampled_from([1, 8]),
    st.sampled_from([("ffn",), ("ffn", "kv"), EVERYTHING]),
    st.integers(0, 9),
)
def test_no_budget_is_exceeded_and_none_has_room(source, asked, multiple, units, seed) -> None:  # type: ignore[no-untyped-def]
    rounding = Rounding(ffn_multiple=multiple)
    budgets = budgets_of(source, asked, rounding.floor(source, units, frozenset()), seed)
    problem = Problem(budgets.parameters or source.parameters, rounding, units, budgets=budgets)
    session = FakeSession(source, seed)
    made = [keep.shape for keep in ALLOCATION["optimal"](session, problem, lambda *args, **kwargs: None).keeps]
    left = budgets.left(made)
    assert min(left) >= 0 and budgets.fit(made)
    for index, (now, dense) in enumerate(zip(made, source.layers, strict=True)):
        wider = rounding.ffn_up(now.intermediate_size + 1, dense.intermediate_size)
        if now.intermediate_size < min(wider, dense.intermediate_size):
            grown = LayerShape(now.num_attention_heads, now.num_key_value_heads, wider)
            assert not can_grow(budgets.change(index, now, grown), left)


@settings(max_examples=40, deadline=None)
@given(shapes, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["flops", "kv", "latency"]), st.integers(0, 9))
def test_a_second_budget_never_lowers_the_loss(source, first, second, kind, seed) -> None:  # type: ignore[no-untyped-def]
    """With every width among the choices, and up to the gap that the solver is allowed."""
    source = source.with_layers(
        LayerShape(each.num_attention_heads, each.num_key_value_heads, min(each.intermediate_size, 40))
        for each in source.layers
    )
    rounding = Rounding(ffn_multiple=1)
    smallest = rounding.floor(source, EVERYTHING, frozenset())
    one = budgets_of(source, {"parameters": first}, smallest, seed)
    both = budgets_of(source, {"parameters": first, kind: second}, smallest, seed)
    alone, together = solved(source, one, rounding, seed=seed)[1], solved(source, both, rounding, seed=seed)[1]
    assert together >= alone - 2e-4 * alone - 1e-6


@pytest.mark.parametrize("asked", [{"kv": 0.5}, {"parameters": 0.6, "latency": 0.5}, {"flops": 0.4, "kv": 0.3}])
@pytest.mark.parametrize("seed", range(3))
def test_choice_is_as_good_as_trying_everything(asked: dict[str, float], seed: int) -> None:
    source = ModelShape(32, 8, 50, True, (LayerShape(4, 2, 24), LayerShape(6, 3, 16)))
    rounding = Rounding(ffn_multiple=4)
    budgets = budgets_of(source, asked, rounding.floor(source, EVERYTHING, frozenset()), seed)
    made, loss, curves = solved(source, budgets, rounding, seed=seed)
    options = [
        [
            LayerShape(kv * group, kv, width)
            for kv, group in rounding.attention_choices(layer, EVERYTHING)
            for width in range(4, layer.intermediate_size + 1, 4)
        ]
        for layer in source.layers
    ]
    best = min(
        sum(curve.loss(each) for curve, each in zip(curves, pair, strict=True))
        for pair in itertools.product(*options)
        if budgets.fit(pair)
    )
    assert budgets.fit(made) and loss == pytest.approx(best, rel=2e-4, abs=1e-9)


def test_only_a_kv_budget_leaves_ffns_whole() -> None:
    budgets = budgets_of(SMOLLM2, {"kv": 0.5}, Rounding().floor(SMOLLM2, ("ffn", "kv"), frozenset()))
    made, _, _ = solved(SMOLLM2, budgets, Rounding(), ("ffn", "kv"))
    assert {each.intermediate_size for each in made} == {1536}
    # Groups are all alike, so that not one more fits.
    assert 0 <= budgets.left(made)[0] < SMOLLM2.kv_bytes_per_token(2) / 90


def test_solver_tolerances_never_exceed_a_budget() -> None:
    """Tight limits of large odd numbers, where sums of fractions would be a hair off."""
    generator = random.Random(0)
    for _ in range(20):
        losses = [[generator.random() for _ in range(20)] for _ in range(30)]
        costs = [[[generator.randrange(10**9), generator.randrange(10**6)] for _ in range(20)] for _ in range(30)]
        limits = [sum(group[0][place] for group in costs) for place in range(2)]
        taken = choose(losses, costs, limits)
        assert taken is not None
        for place in range(2):
            assert sum(group[each][place] for group, each in zip(costs, taken, strict=True)) <= limits[place]


def test_nothing_fits() -> None:
    assert choose([[0.0, 1.0]], [[[5], [4]]], [3]) is None


def test_the_budget_out_of_reach_is_named() -> None:
    smallest = Rounding().floor(SMOLLM2, ("ffn", "kv"), frozenset())
    good = budgets_of(SMOLLM2, {"parameters": 0.5, "flops": 0.5}, smallest)
    check_reachable(SMOLLM2, good, Rounding(), ("ffn", "kv"), frozenset())
    cost = cost_of("kv", SMOLLM2)
    bad = Budget(cost, 7_679, 23_040, "--kv-cache 7679B")
    with pytest.raises(PrunekitError, match=r"--kv-cache 7679B .* least possible is 7,680 \(--kv-cache 0.3334\)"):
        check_reachable(SMOLLM2, Budgets((*good, bad)), Rounding(), ("ffn", "kv"), frozenset())
    with pytest.raises(PrunekitError, match="protected layers the smallest possible is"):
        check_reachable(SMOLLM2, good, Rounding(), ("ffn", "kv"), frozenset(range(30)))


def test_budgets_that_exclude_each_other() -> None:
    """Two query heads in every choice: few KV heads or few parameters, in one layer not both."""
    source = ModelShape(32, 8, 50, True, (LayerShape(6, 3, 8),))
    rounding = Rounding(ffn_multiple=1, head_multiple=3)
    assert rounding.attention_choices(source.layers[0], ("kv", "query")) == ((3, 2), (3, 1))
    by_kv = Cost("kv_bytes_per_token", 0, lambda index, heads: 2 if heads == (3, 2) else 3, lambda index, width: 0)
    by_size = Cost("flops_per_token", 0, lambda index, heads: heads[0] * heads[1], lambda index, width: 0)
    budgets = Budgets((Budget(by_kv, 2, 3, "--kv-cache 2B"), Budget(by_size, 3, 6, "--flops 3")))
    with pytest.raises(PrunekitError, match="Each of --kv-cache 2B and --flops 3 can be met, but not all at once"):
        check_reachable(source, budgets, rounding, ("kv", "query"), frozenset())


def test_ffns_that_may_go_are_no_floor() -> None:
    least = Rounding().floor(SMOLLM2, ("ffn", "ffn-layer"), frozenset()).parameters
    check_reachable(SMOLLM2, Budgets.of_parameters(SMOLLM2, least), Rounding(), ("ffn", "ffn-layer"), frozenset())
    for limit, units in ((least - 1, ("ffn", "ffn-layer")), (least, ("ffn",))):
        with pytest.raises(PrunekitError, match="out of reach"):
            check_reachable(SMOLLM2, Budgets.of_parameters(SMOLLM2, limit), Rounding(), units, frozenset())
