"""Allocations meet their target exactly, within floors and multiples, and never give back what they took."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.plan.allocations import ALLOCATIONS, AdaptConfig
from prunekit.plan.budgets import Budgets
from prunekit.plan.knobs import knobs_of
from prunekit.plan.rounding import Rounding, rounding_preset
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.allocation import ALLOCATION, Problem
from prunekit.pruning.allocation.adapt import normalised, rounds
from prunekit.pruning.allocation.feasibility import check_reachable
from tests.support.fake_session import SMOLLM2, FakeSession

WIDTH_METHODS = [name for name in ALLOCATION if name != "drop"]


def allocate(name: str, session: FakeSession, problem: Problem, **settings: Any) -> Plan:
    """With those of ``settings`` that the allocation has."""
    kind = ALLOCATIONS[name]
    own = {each.field for each in knobs_of(kind)}
    config = kind(**{key: value for key, value in settings.items() if key in own})
    return Plan(session.source, ALLOCATION[name](session, problem, lambda *a, **k: None, config).keeps)


def one_unit(shape: ModelShape, rounding: Rounding) -> int:
    return rounding.ffn_multiple * shape.ffn_channel_parameters


@pytest.mark.parametrize("multiple", [1, 16, 64])
@pytest.mark.parametrize("name", WIDTH_METHODS)
def test_target_is_met_to_within_one_rounding_unit(name: str, multiple: int) -> None:
    rounding = Rounding(ffn_multiple=multiple)
    budget = int(0.79 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    plan = allocate(name, FakeSession(SMOLLM2), Problem(budget, rounding))
    assert 0 <= budget - plan.shape.parameters < one_unit(SMOLLM2, rounding)
    for layer in plan.shape.layers:
        assert layer.intermediate_size % multiple == 0


def test_adapt_gives_important_layers_more() -> None:
    importance = [float(i) for i in range(30)]
    budget = int(0.79 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    plan = allocate("adapt", FakeSession(SMOLLM2, importance=importance), Problem(budget, Rounding(ffn_multiple=1)))
    widths = [layer.intermediate_size for layer in plan.shape.layers]
    assert widths == sorted(widths) and widths[0] < widths[-1]


@pytest.mark.parametrize("share", [0.95, 0.8, 0.5])
@pytest.mark.parametrize("attention_ratio", [1.0, 0.0])
def test_rounds_of_adapt_are_known_before(share: float, attention_ratio: float) -> None:
    """SmolLM2's heads go by thirds of a layer: 14 rounds to 80 %, where the share of the blocks alone says 11."""
    budget = SMOLLM2.parameters - int((1 - share) * SMOLLM2.block_parameters)
    problem = Problem(budget, Rounding(ffn_multiple=1))
    session = FakeSession(SMOLLM2)
    allocate("adapt", session, problem, attention_ratio=attention_ratio)
    told = rounds(SMOLLM2, problem, AdaptConfig(attention_ratio=attention_ratio))
    assert told == pytest.approx(len(session.scored), rel=0.1, abs=1)
    if (share, attention_ratio) == (0.8, 1.0):
        assert told == 14


def test_adapt_matches_the_papers_schedule() -> None:
    """Fourteen steps of 2 % with constant importance: the widths follow s = 14/50 − 14·A·c, clipped at nought."""
    importance = [1.0] + [0.0] * 29
    c = normalised(importance)
    wanted = []
    for value in c:
        s = 0.0
        for _ in range(14):
            s = min(max(s + 0.02 - 0.02 * value, 0.0), 0.99)
        wanted.append(int(1536 * (1 - s) + 1e-9))
    reference = SMOLLM2.with_layers(LayerShape(9, 3, width) for width in wanted)
    session = FakeSession(SMOLLM2, importance=importance)
    plan = allocate("adapt", session, Problem(reference.parameters, Rounding(ffn_multiple=1)))
    assert len(session.scored) == 14
    widths = [layer.intermediate_size for layer in plan.shape.layers]
    assert max(abs(a - b) for a, b in zip(widths, wanted, strict=True)) <= 1
    assert all(layer.num_key_value_heads == 3 for layer in plan.shape.layers)


def test_kv_groups_go_when_their_share_is_lost() -> None:
    budget = int(0.5 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    plan = allocate("uniform", FakeSession(SMOLLM2), Problem(budget, Rounding(ffn_multiple=1)))
    assert all(layer.num_key_value_heads == 2 and layer.group_size == 3 for layer in plan.shape.layers)


@pytest.mark.parametrize("share", [0.68, 0.35])
def test_groups_that_go_at_once_leave_nothing_over(share: float) -> None:
    """All layers alike lose their groups in the same step, and FFNs can't get back what earlier steps took."""
    budget = int(share * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    session = FakeSession(SMOLLM2, importance=[1.0] * 30)
    plan = allocate("adapt", session, Problem(budget, Rounding(ffn_multiple=1)))
    assert 0 <= budget - plan.shape.parameters < one_unit(SMOLLM2, Rounding(ffn_multiple=1))


@pytest.mark.parametrize("steps", [10, 50])
def test_few_layers_with_few_heads_fill_the_budget(steps: int) -> None:
    """A KV group is a large part of so small a model, larger than what one step takes from its FFNs."""
    source = ModelShape(64, 16, 128, True, (LayerShape(8, 4, 96),) * 4)
    for percent in range(32, 98, 3):
        budget = percent * source.block_parameters // 100 + source.embedding_parameters
        plan = allocate("adapt", FakeSession(source), Problem(budget, Rounding(ffn_multiple=1)), steps=steps)
        assert 0 <= budget - plan.shape.parameters < one_unit(source, Rounding(ffn_multiple=1)), percent


def test_attention_ratio_nought_leaves_attention_whole() -> None:
    budget = int(0.5 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    for name in ("uniform", "adapt"):
        plan = allocate(name, FakeSession(SMOLLM2), Problem(budget, Rounding(ffn_multiple=1)), attention_ratio=0.0)
        assert all(layer.num_attention_heads == 9 for layer in plan.shape.layers)


@pytest.mark.parametrize("name", WIDTH_METHODS)
def test_query_heads_go_alike_in_every_group(name: str) -> None:
    budget = int(0.6 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    plan = allocate(name, FakeSession(SMOLLM2), Problem(budget, Rounding(), units=("ffn", "query")))
    assert all(layer.num_key_value_heads == 3 for layer in plan.shape.layers)
    assert any(layer.group_size < 3 for layer in plan.shape.layers)


@pytest.mark.parametrize("name", WIDTH_METHODS)
def test_only_attention_or_only_ffn(name: str) -> None:
    budget = int(0.9 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    heads = allocate(name, FakeSession(SMOLLM2), Problem(budget, Rounding(), units=("kv",)))
    assert {layer.intermediate_size for layer in heads.shape.layers} == {1536}
    # What is left over is less than one KV group.
    group = SMOLLM2.kv_head_parameters + 3 * SMOLLM2.query_head_parameters
    assert 0 <= budget - heads.shape.parameters < group
    ffn = allocate(name, FakeSession(SMOLLM2), Problem(budget, Rounding(), units=("ffn",)))
    assert {layer.num_attention_heads for layer in ffn.shape.layers} == {9}


@pytest.mark.parametrize("name", WIDTH_METHODS)
def test_protected_layers_stay_whole(name: str) -> None:
    budget = int(0.7 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    plan = allocate(name, FakeSession(SMOLLM2), Problem(budget, Rounding(), protected=frozenset({0, 29})))
    for index in (0, 29):
        assert plan.shape.layers[index] == SMOLLM2.layers[index]


def test_tight_budgets_reach_the_floor() -> None:
    rounding = Rounding(ffn_multiple=64, min_ffn=128)
    smallest = rounding.floor(SMOLLM2, ("ffn", "kv"), frozenset())
    for name in WIDTH_METHODS:
        plan = allocate(name, FakeSession(SMOLLM2), Problem(smallest.parameters, rounding))
        assert plan.shape == smallest


def test_impossible_target_says_what_is_possible() -> None:
    with pytest.raises(PrunekitError, match="smallest possible is") as caught:
        check_reachable(SMOLLM2, Budgets.of_parameters(SMOLLM2, 25_000_000), Rounding(), ("ffn", "kv"), frozenset())
    smallest = Rounding().floor(SMOLLM2, ("ffn", "kv"), frozenset())
    assert f"{smallest.parameters:,}" in str(caught.value)


@pytest.mark.parametrize("name", ["uniform", "global"])
def test_multiples_of_heads_reach_their_floor(name: str) -> None:
    """Three groups of three in multiples of four: from 3 x 3 only 2 x 2 is left, which changes both at once."""
    source = ModelShape(64, 16, 100, True, (LayerShape(9, 3, 64), LayerShape(18, 6, 64)))
    rounding = Rounding(ffn_multiple=1, head_multiple=4)
    for units in (("kv", "query"), ("ffn", "kv", "query")):
        smallest = rounding.floor(source, units, frozenset())
        plan = allocate(name, FakeSession(source), Problem(smallest.parameters, rounding, units=units))
        assert plan.shape == smallest


def test_drop_removes_the_least_important_layers() -> None:
    importance = [5.0, 1.0, 4.0, 0.5] + [3.0] * 26
    budget = SMOLLM2.parameters - 2 * SMOLLM2.layer_parameters(SMOLLM2.layers[0])
    plan = allocate("drop", FakeSession(SMOLLM2, importance=importance), Problem(budget, Rounding()))
    assert plan.dropped_layers == (1, 3)


def test_tensor_parallel_widths_divide() -> None:
    source = ModelShape(64, 16, 100, False, (LayerShape(16, 8, 1000), LayerShape(16, 8, 777)))
    rounding = rounding_preset("tp=2", 16)
    budget = int(source.block_parameters * 0.6) + source.embedding_parameters
    for name in WIDTH_METHODS:
        for layer, dense in zip(
            allocate(name, FakeSession(source), Problem(budget, rounding)).shape.layers, source.layers, strict=True
        ):
            assert layer.num_key_value_heads % 2 == 0 and layer.num_attention_heads % 2 == 0
            assert layer.intermediate_size % 128 == 0 or layer.intermediate_size == dense.intermediate_size


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 200)), min_size=1, max_size=5),
    st.sampled_from([1, 8, 64]),
    st.floats(0.0, 1.0),
    st.sampled_from(WIDTH_METHODS),
    st.sampled_from([("ffn",), ("ffn", "kv"), ("ffn", "kv", "query")]),
    st.integers(0, 9),
)
def test_every_budget_is_met_and_filled(layers, multiple, share, name, units, seed) -> None:  # type: ignore[no-untyped-def]
    source = ModelShape(32, 8, 50, True, tuple(LayerShape(kv * group, kv, ffn) for kv, group, ffn in layers))
    rounding = Rounding(ffn_multiple=multiple)
    floor = rounding.floor(source, units, frozenset())
    budget = floor.parameters + int(share * (source.parameters - 1 - floor.parameters))
    if budget >= source.parameters or budget < floor.parameters:
        return
    session = FakeSession(source, seed)
    plan = allocate(name, session, Problem(budget, rounding, units=units), steps=10)
    assert plan.shape.parameters <= budget
    # No layer could take one more rounding unit (adapt never gives back what earlier steps took).
    if name != "adapt":
        for now, dense in zip(plan.shape.layers, source.layers, strict=True):
            if now.intermediate_size < dense.intermediate_size:
                wider = rounding.ffn_up(now.intermediate_size + 1, dense.intermediate_size)
                assert plan.shape.parameters + (wider - now.intermediate_size) * source.ffn_channel_parameters > budget


def test_plans_are_the_same_twice() -> None:
    budget = int(0.79 * SMOLLM2.block_parameters) + SMOLLM2.embedding_parameters
    for name in ALLOCATION:
        first, second = (allocate(name, FakeSession(SMOLLM2), Problem(budget, Rounding())) for _ in range(2))
        assert first.to_json() == second.to_json()


def test_normalised_spans_one() -> None:
    for values in itertools.permutations([0.0, 1.0, 5.0]):
        assert max(abs(v) for v in normalised(values)) == pytest.approx(1)
    assert normalised([2.0, 2.0]) == [0.0, 0.0]
