"""Plans: JSON there and back, and every kind of damage refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.plan import LayerKeep, Plan, compose, decode_ranges, encode_ranges, whole_plan
from prunekit.plan.recipe import Recipe
from prunekit.plan.shape import LayerShape, ModelShape
from tests.support.fake_session import SMOLLM2
from tests.support.tiny import random_plan

SHAPE = ModelShape(64, 16, 128, False, (LayerShape(8, 4, 96),) * 4)


@given(st.sets(st.integers(0, 400), min_size=1))
def test_ranges_round_trip(indices: set[int]) -> None:
    rising = tuple(sorted(indices))
    text = encode_ranges(rising)
    assert decode_ranges(text, 401) == rising
    # As short as it can be: no run touches the next.
    runs = [tuple(map(int, run.split("-"))) for run in text.split(",")]
    assert all(left[-1] + 1 < right[0] for left, right in pairwise(runs))


@given(st.text(alphabet="0123456789-, x²", max_size=12))
def test_ranges_from_a_stranger(text: str) -> None:
    """Whatever is written: rising indices below the limit, or a refusal."""
    try:
        indices = decode_ranges(text, 50)
    except PrunekitError:
        return
    assert indices and list(indices) == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < 50


@pytest.mark.parametrize("text", ["", "-1", "5-3", "3,2", "1,1", "0-50", "50", "0-", "a", "9" * 5000, "0--3"])
def test_ranges_refused(text: str) -> None:
    if text == "0-":
        # An open end reads as the number alone.
        assert decode_ranges(text, 50) == (0,)
        return
    with pytest.raises(PrunekitError, match="again"):
        decode_ranges(text, 50)


@given(st.integers(0, 1000), st.sets(st.integers(0, 3), max_size=3))
def test_plan_round_trip(seed: int, drop: set[int]) -> None:
    made = random_plan(SHAPE, seed=seed, drop=tuple(drop))
    plan = Plan(made.source, made.layers, {"seed": seed, "method": {"name": "x"}})
    text = plan.to_json()
    again = Plan.from_dict(json.loads(text))
    assert again == plan and again.to_json() == text
    assert again.dropped_layers == tuple(sorted(drop))
    assert again.shape.parameters <= SHAPE.parameters


def test_plans_of_the_version_that_merged_kv_heads() -> None:
    """They load where nothing is merged, and are refused in one sentence where something is."""
    plan = random_plan(SHAPE)
    data = json.loads(plan.to_json())
    data["layers"][1]["keep"]["merged"] = []
    assert Plan.from_dict(data) == plan
    data["layers"][1]["keep"]["merged"] = ["0,2", "1,3"]
    with pytest.raises(PrunekitError, match=r"old.json merges KV heads of layer 1 \(kv-merge\).* make the plan again"):
        Plan.from_dict(data, "old.json")


def test_plan_on_disk(tmp_path: Path) -> None:
    plan = random_plan(SHAPE)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_shares_are_of_blocks_and_of_everything() -> None:
    plan = Plan(SMOLLM2, tuple(LayerKeep.everything(i, SMOLLM2.layers[i]) for i in range(15)))
    assert plan.share_of_blocks == 0.5
    assert plan.share_of_parameters == (106_202_880 / 2 + 28_312_128) / 134_515_008


LAYER = LayerShape(8, 4, 96)


@pytest.mark.parametrize(
    ("kv", "query", "ffn", "part"),
    [
        ((), (0,), (0,), "without KV heads"),
        ((0,), (), (0,), "without query heads"),
        ((), (), (), "neither attention nor FFN"),
        ((1, 0), (0, 2), (0,), "rising"),
        ((0, 4), (0, 2), (0,), "below 4"),
        ((0,), (0,), (96,), "below 96"),
        ((0,), (0,), (-1, 3), "rising"),
        ((0,), (0, 2), (0,), "not KV head 1"),
        ((0, 1), (0, 1, 2), (0,), "unequal"),
        ((0, 1), (0, 1), (0,), "unequal"),
    ],
)
def test_layers_that_do_not_fit(kv: Any, query: Any, ffn: Any, part: str) -> None:
    with pytest.raises(PrunekitError, match=part):
        LayerKeep(2, kv, query, ffn).check(LAYER)


def test_plans_that_do_not_fit() -> None:
    keep = [LayerKeep.everything(i, LAYER) for i in range(5)]
    for layers in ((), (keep[1], keep[0]), (keep[0], keep[0]), (keep[4],)):
        with pytest.raises(PrunekitError, match="layer"):
            Plan(SHAPE, tuple(layers))


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value inside a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, child in children for path in paths(child, (*prefix, key)))]


GOOD = json.loads(random_plan(SHAPE).to_json())
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**13), st.floats(), st.text(max_size=4), st.just([]), st.just({})
)


@given(st.sampled_from(paths(GOOD)), JUNK)
def test_damage_anywhere(path: tuple[Any, ...], junk: Any) -> None:
    """One value replaced by another: the plan is refused in words, or still makes sense. Never anything else."""
    data = json.loads(json.dumps(GOOD))
    if not path:
        data = junk
    else:
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = junk
    try:
        plan = Plan.from_dict(data, "it")
    except PrunekitError:
        return
    for layer in plan.layers:
        layer.check(plan.source.layers[layer.index])
    assert json.loads(plan.to_json())["format"] == "prunekit-plan"


def test_impossible_sizes_are_refused_before_they_are_spelled_out() -> None:
    data = json.loads(json.dumps(GOOD))
    data["source"]["layers"][0]["intermediate_size"] = 10**12
    data["layers"][0]["keep"]["ffn"] = f"0-{10**12 - 1}"
    with pytest.raises(PrunekitError, match="no model has"):
        Plan.from_dict(data)


WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1 << 20}
KEPT = {"kv_heads": "0-3", "query_heads": "0-7", "ffn": "0-1048575"}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d["source"].update(layers=[WIDE] * 4096), "which no model has"),
        (lambda d: d["source"].update(layers=[WIDE] * 5000), "5,000 layers"),
        (lambda d: d["source"]["layers"][0].update(intermediate_size=1 << 25), "which no model has"),
        (lambda d: d["source"].update(hidden_size=10**39), "which no model has"),
        (lambda d: d.update(changes={"hidden_size": 10**39}), "which no model has"),
        (lambda d: d["source"].update(norms_per_layer=10**39), "norms_per_layer"),
        (lambda d: d.update(layers=[d["layers"][0]] * 50_000), "must rise"),
        (lambda d: d["layers"][0].update(index=True), "names layer True"),
        (lambda d: d["layers"][0]["keep"].update(merged=["0-3"] * 100_000), "merges KV heads"),
        (lambda d: d["layers"][0]["keep"].update(ffn="0-" + "9" * 4000), "must rise and stay below"),
        (lambda d: d["layers"][0]["keep"].update(ffn=7), "not a list of unit ranges"),
        (lambda d: d.update(provenance={"method": "flap"}), "provenance.method is no JSON object"),
        (lambda d: d.update(provenance={"method": {"name": ["flap"]}}), r"provenance.method.name"),
        (lambda d: d.update(provenance={"method": {"name": "a\nb\x1b[31m"}}), r"provenance.method.name"),
        (lambda d: d.update(provenance={"model": [1]}), "provenance.model is no JSON object"),
        (lambda d: d.update(provenance={"target": 0.7}), "provenance.target is no JSON object"),
        (lambda d: d.update(provenance={"calibration": "builtin"}), "provenance.calibration is no JSON object"),
        (lambda d: d.update(provenance={"calibration": {"sequences": 10**12}}), "provenance.calibration.sequences"),
        (lambda d: d.update(provenance={"calibration": {"mix": [3]}}), "provenance.calibration.mix"),
        (lambda d: d.update(provenance={"compensation": {"projections": 3}}), "provenance.compensation.projections"),
        (lambda d: d.update(provenance={"refit": {"towards": "a"}}), "provenance.refit.towards"),
        (lambda d: d.update(provenance={"rescale": {"batch_size": 1 << 70}}), "provenance.rescale.batch_size"),
        (lambda d: d.update(provenance={"seed": -1}), "provenance.seed"),
    ],
)
def test_a_strangers_plan_is_refused_before_it_fills_the_memory(change: Any, part: str) -> None:
    data = json.loads(random_plan(SHAPE).to_json())
    change(data)
    with pytest.raises(PrunekitError, match=part) as caught:
        Plan.from_dict(data)
    assert len(str(caught.value)) < 500


def test_two_plans_make_one(tmp_path: Path) -> None:
    first = replace(
        random_plan(SHAPE, seed=1, drop=(2,)),
        provenance={"model": {"name": "dense"}, "seed": 0, "history": [{"step": 1}], "recovery": [{"tokens": 5}]},
        changes={"o_bias": True},
    )
    second = Plan(
        first.shape,
        tuple(
            LayerKeep(place, keep.kv_heads[:1], keep.query_heads[:1], tuple(range(1, len(keep.ffn), 2)))
            for place, keep in enumerate(
                LayerKeep.everything(index, layer) for index, layer in enumerate(first.shape.layers)
            )
            if place != 0
        ),
        {"model": {"name": "smaller"}, "seed": 0, "history": [{"step": 2}], "target": {"asked": "--blocks 0.5"}},
        recipe=Recipe.of("flap"),
    )
    both = compose(first, second)
    assert both.source == SHAPE and both.shape.layers == second.shape.layers and both.shape.o_bias
    assert [keep.index for keep in both.layers] == [1, 3]
    assert both.layers[0].ffn == first.layers[1].ffn[1::2]
    assert both.layers[1].kv_heads == first.layers[2].kv_heads[:1]
    assert both.recipe == second.recipe
    assert both.provenance == {
        "model": {"name": "dense"},
        "seed": 0,
        "history": [{"step": 1}, {"step": 2}],
        "recovery": [{"tokens": 5}],
        "target": {"asked": "--blocks 0.5"},
    }
    both.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == both
    assert compose(first, whole_plan(first.shape)).layers == first.layers
    assert not whole_plan(SHAPE).cuts and both.cuts
    with pytest.raises(PrunekitError, match="don't follow each other"):
        compose(second, first)
