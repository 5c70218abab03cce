"""Why a layer has its width: prices and words against curves worked out by hand, and order under resampling."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from prunekit.models.families import FAMILIES
from prunekit.plan.allocations import OptimalConfig
from prunekit.plan.budgets import Budget, Budgets, shape_cost
from prunekit.plan.provenance import check_provenance
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import ModelShape
from prunekit.pruning.allocation import Problem
from prunekit.pruning.allocation.optimal import solve
from prunekit.pruning.curves.loss_curves import FfnCurve, HeadChoice, LayerCurves
from prunekit.pruning.curves.text import evenly, scale_sequences
from prunekit.pruning.reasons import explain
from prunekit.pruning.stability import stability
from tests.support.tiny import tiny_config

WIDTH = 8


def _shape(layers: int = 3) -> ModelShape:
    config = tiny_config(
        "llama",
        layers=layers,
        hidden_size=10,
        head_dim=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=WIDTH,
    )
    return FAMILIES["llama"].shape(config)


def _curve(worth: float, heads: float = 1e3, alone: tuple[float, ...] = ()) -> LayerCurves:
    """Each further channel that goes costs ``worth`` nats more than the one before it; a KV head costs ``heads``."""
    loss = tuple(worth * gone * (gone + 1) / 2 for gone in range(WIDTH + 1))
    choices = {(2, 1): HeadChoice((0, 1), (0, 1), 0.0), (1, 1): HeadChoice((0,), (0,), heads)}
    measured = {"attention": alone, "ffn": alone} if alone else {}
    return LayerCurves(FfnCurve(tuple(range(WIDTH)), loss), choices, measured)  # type: ignore[arg-type]


def _problem(source: ModelShape, gone: int) -> Problem:
    # A channel of an FFN has three rows of hidden_size.
    return Problem(source.parameters - gone * 30, Rounding(ffn_multiple=1))


def _explained(curves: list[LayerCurves], gone: int, texts: list[str] | None = None, **problem: Any) -> dict[str, Any]:
    source = _shape(len(curves))
    asked = replace(_problem(source, gone), **problem)
    shapes = solve(source, asked, curves)
    made = explain(source, asked, curves, shapes, texts or [], bytes_per_parameter=2)
    assert made == json.loads(json.dumps(made))
    return made


def test_prices_are_differences_of_the_curve() -> None:
    """60 bytes a channel: 1 MB is 1e6 / 60 channels."""
    made = _explained([_curve(1.0), _curve(2.0), _curve(100.0)], gone=3)
    assert made["unit"] == "MB of weights" and made["budget"] == "parameters"
    first, second, third = (layer["ffn"] for layer in made["layers"])
    # 1 + 2 of the first and 2 of the second: the cheapest three.
    assert [each["kept"] for each in (first, second, third)] == [6, 7, 8]
    per_mb = 1e6 / 60
    assert first["narrower"] == pytest.approx(3 * per_mb) and first["wider"] == pytest.approx(2 * per_mb)
    assert second["narrower"] == pytest.approx(4 * per_mb) and second["wider"] == pytest.approx(2 * per_mb)
    assert third["narrower"] == pytest.approx(100 * per_mb) and third["wider"] is None
    assert made["shadow_price"] == pytest.approx(2 * per_mb)
    assert [each["loss"] for each in (first, second, third)] == [3, 2, 0]
    assert first["loss_without"] == 36


def test_at_the_optimum_nothing_can_be_spent_better() -> None:
    """The rule that the words rest on: no step back costs less than the best step forward saves."""
    curves = [_curve(0.3 + 0.1 * place, heads=0.2 * place + 0.1) for place in range(6)]
    made = _explained(curves, gone=17)
    prices = [layer["ffn"]["narrower"] for layer in made["layers"]]
    assert min(price for price in prices if price is not None) >= made["shadow_price"] * (1 - 1e-9)


def test_heads_have_prices_too() -> None:
    made = _explained([_curve(1e-3, heads=5.0), _curve(1e-3, heads=7.0)], gone=2)
    # q, k, v and o of one KV head: 4 x 4 x 10 parameters of 2 bytes.
    assert made["layers"][0]["attention"]["narrower"] == pytest.approx(5 * 1e6 / 320)
    assert made["layers"][1]["attention"]["narrower"] == pytest.approx(7 * 1e6 / 320)
    assert "Query heads whole: one MB of weights less would cost 15,625,000 mnats" in made["layers"][0]["words"]


def test_the_budget_that_decides_gives_the_unit() -> None:
    source = _shape(2)
    flops = shape_cost("flops_per_token", source, lambda shape: shape.flops_per_token())
    loose = Budgets.of_parameters(source, source.parameters).each[0]
    tight = Budget(flops, flops.of(source.layers) - 3 * 60, flops.of(source.layers), "flops")
    asked = Problem(source.parameters, Rounding(ffn_multiple=1), budgets=Budgets((loose, tight)))
    curves = [_curve(1.0), _curve(1.0)]
    made = explain(source, asked, curves, solve(source, asked, curves), [], 2)
    assert made["unit"] == "MFLOP a token"
    # A channel is 60 FLOPs; three have gone, one from one FFN and two from the other.
    kept = sorted((layer["ffn"]["kept"], layer["ffn"]["wider"]) for layer in made["layers"])
    assert kept == [(6, pytest.approx(2e6 / 60)), (7, pytest.approx(1e6 / 60))]


def test_words_differ_where_reasons_do() -> None:
    made = _explained([_curve(1.0), _curve(2.0), _curve(100.0), _curve(1.0)], gone=9, protected=frozenset({3}))
    first, second, third, last = (layer["words"] for layer in made["layers"])
    assert first.startswith("FFN 2 of 8: one MB of weights less would cost") and ", one more save " in first
    assert third.startswith("FFN whole: one MB of weights less would cost 1,666,666,667 mnats, 16.7 times")
    assert last.startswith("FFN whole: protected, so nothing may go.") and "Query heads whole: protected" in last
    assert len({first, second, third, last}) == 4


def test_a_sublayer_that_is_gone_says_what_it_cost() -> None:
    curves = [_curve(1e-4).without("ffn", 0.011), _curve(50.0), _curve(60.0)]
    made = _explained(curves, gone=8, units=("ffn", "ffn-layer"))
    assert made["layers"][0]["words"].startswith("FFN 0 of 8: all of it is gone, which costs 11 mnats.")
    assert made["layers"][0]["ffn"]["narrower"] is None and made["layers"][0]["ffn"]["loss_without"] == 0.011


def test_what_a_sublayer_would_cost_if_it_went() -> None:
    """Eight channels worth 1, 2, … 8 mnats are 36; of two KV heads, one stays where they may not all go."""
    curves = [_curve(1e-3, heads=0.5), _curve(50.0), _curve(60.0)]
    made = _explained(curves, gone=3)
    first = made["layers"][0]
    assert (first["ffn"]["loss_without"], first["ffn"]["least"]) == (pytest.approx(0.036), 0)
    assert (first["attention"]["loss_without"], first["attention"]["least"]) == (0.5, [1, 1])
    assert "Gone, it would cost about 36 mnats (by the curve), in place of 6 mnats." in first["words"]
    assert "With 1 left they would cost about 500 mnats (by the curve)." in first["words"]
    # What the plan may drop was measured.
    curves = [each.without("ffn", 0.04 if each is curves[0] else 900.0).without("attention", 0.7) for each in curves]
    first = _explained(curves, gone=3, units=("ffn", "ffn-layer", "kv", "attention-layer"))["layers"][0]
    assert first["ffn"]["without_measured"] and first["attention"]["without_measured"]
    assert "Gone, it would cost 40 mnats (measured), in place of 6 mnats." in first["words"]
    assert "Gone, they would cost 700 mnats (measured)." in first["words"]
    assert check_provenance({"why": made})["why"] == made


def test_what_was_measured_alone_is_told_with_its_texts() -> None:
    texts = ["legal.jsonl", "self"] * 4
    curves = [
        _curve(1.0, alone=(0.4, 0.1) * 4),
        _curve(1.0, alone=(0.9, 0.9) * 4),
        _curve(1.0, alone=(0.1, 0.1) * 4),
    ]
    made = _explained(curves, 5, texts)
    first, second, third = (layer["ffn"] for layer in made["layers"])
    assert first["texts"] == pytest.approx({"legal.jsonl": 0.4, "self": 0.1}) and first["alone"] == pytest.approx(0.25)
    # The spread of 0.4 and 0.1, each four times, over the root of eight.
    assert first["alone_standard_error"] == pytest.approx((4 * 2 * 0.15**2 / 7 / 8) ** 0.5)
    assert (first["rank"], second["rank"], third["rank"]) == (2, 1, 3)
    assert (second["rank_low"], second["rank_high"]) == (1, 1)
    assert "legal.jsonl pays most: 1.6 times the mean." in made["layers"][0]["words"]
    assert "pays most" not in made["layers"][1]["words"]
    assert made["sequences"] == 8 and made["not_measured"] == [] and made["kendall_tau"]["ffn"] > 0.9


def test_a_difference_within_chance_is_no_word() -> None:
    """0.9, 0.1, 0.8, 0.2 beside 0.3 four times: 1.25 times the mean, and less than two standard errors more."""
    texts = ["own.jsonl"] * 4 + ["self"] * 4
    noisy = _curve(1.0, alone=(0.9, 0.1, 0.8, 0.2, 0.3, 0.3, 0.3, 0.3))
    # 0.55 beside 0.25: the error is sqrt((0.01 / 3 + 0.01 / 3) / 4) = 0.041.
    clear = _curve(1.0, alone=(0.5, 0.6, 0.5, 0.6, 0.2, 0.3, 0.2, 0.3))
    first, second = _explained([noisy, clear], 3, texts)["layers"]
    assert first["ffn"]["pays_most"] is None and "pays most" not in first["words"]
    assert first["ffn"]["texts"] == pytest.approx({"own.jsonl": 0.5, "self": 0.3})
    assert second["ffn"]["pays_most"] == "own.jsonl" and "own.jsonl pays most: 1.4 times the mean." in second["words"]


def test_the_table_names_no_text_that_pays_more_by_chance() -> None:
    from prunekit.cli.tables.reasons import _pays

    texts = ["own.jsonl"] * 4 + ["self"] * 4
    noisy = _curve(1.0, alone=(0.9, 0.1, 0.8, 0.2, 0.3, 0.3, 0.3, 0.3))
    clear = _curve(1.0, alone=(0.5, 0.6, 0.5, 0.6, 0.2, 0.3, 0.2, 0.3))
    layers = _explained([noisy, clear], 3, texts)["layers"]
    assert [_pays(layer["ffn"]) for layer in layers] == ["", "own.jsonl"]
    groups = _explained([clear], 3, ["own.jsonl: billing"] * 4 + ["own.jsonl: returns"] * 4)["layers"]
    assert _pays(groups[0]["ffn"]) == "billing"
    beside = _explained([clear], 3, ["own.jsonl: billing"] * 4 + ["self"] * 4)["layers"]
    assert _pays(beside[0]["ffn"]) == "own.jsonl: billing"


def test_a_text_of_which_too_little_was_measured_is_said_to_be_that() -> None:
    source, curves = _shape(2), [_curve(1.0, alone=(0.9, 0.9, 0.9, 0.9, 0.1))] * 2
    asked = _problem(source, 3)
    shapes = solve(source, asked, curves)
    told = explain(source, asked, curves, shapes, ["builtin"] * 4 + ["self"], 2, mix=("builtin", "self", "own.jsonl"))
    assert "pays most" not in told["layers"][0]["words"]
    assert told["not_measured"] == [
        "Whether one text of the mix pays most: that needs 4 sequences of each, and fewer were left of self (1), "
        "own.jsonl (0). Give more text (the setting sequences)."
    ]
    alone = explain(source, asked, curves, shapes, ["builtin"] * 5, 2, mix=("builtin",))
    assert alone["not_measured"] == []


def test_the_scale_takes_as_many_sequences_of_each_text() -> None:
    sources = ["builtin"] * 9 + ["self", "builtin", "self", "own", "self"]
    # Two rounds of three texts, then what is left of two of them.
    assert evenly(range(14), sources, 8) == [0, 1, 2, 3, 9, 11, 12, 13]
    assert evenly(range(5, 14), sources, 4) == [5, 6, 9, 12]
    assert evenly(range(3), sources, 9) == [0, 1, 2] and evenly(range(4, 9), (), 2) == [4, 5]
    quick = OptimalConfig(scale_tokens=1024)
    assert [scale_sequences(quick, 256, texts) for texts in (1, 2, 3)] == [4, 8, 12]
    assert scale_sequences(quick, 4096) == 2


def test_curves_of_an_earlier_version_are_told_apart() -> None:
    made = _explained([_curve(1.0), _curve(1.0)], 3, ["a"] * 4)
    assert made["layers"][0]["ffn"]["alone"] is None and made["kendall_tau"] == {"attention": None, "ffn": None}
    assert len(made["not_measured"]) == 2 and "kept by an earlier version" in made["not_measured"][0]


def test_noise_has_no_order() -> None:
    """Layers that differ by less than their text does: any may be first. Where they differ by more, none but one."""
    noise = [[0.1 * ((7 * row + 3 * layer) % 5) for layer in range(5)] for row in range(20)]
    made = stability(noise)
    assert made is not None and made.tau < 0.6
    assert max(high - low for low, high in zip(made.low, made.high, strict=True)) >= 2
    sure = stability([[value + 10 * layer for layer, value in enumerate(row)] for row in noise])
    assert sure is not None and sure.tau == pytest.approx(1) and sure.ranks == sure.low == sure.high == (4, 3, 2, 1, 0)
    assert stability(noise) == made


@pytest.mark.parametrize("samples", [[], [[1.0, 2.0]] * 3, [[1.0]] * 9])
def test_too_little_text_has_no_stability(samples: list[list[float]]) -> None:
    assert stability(samples) is None


def test_layers_that_are_all_alike_have_no_order() -> None:
    made = stability([[1.0, 1.0, 1.0]] * 8)
    assert made is not None and made.tau == 0


@pytest.mark.parametrize(
    "why",
    [
        3,
        {"unit": 3},
        {"unit": "a\nb"},
        {"shadow_price": float("inf")},
        {"layers": {}},
        {"layers": [3]},
        {"layers": [{"index": -1}]},
        {"layers": [{"words": "x" * 3000}]},
        {"layers": [{"ffn": 3}]},
        {"layers": [{"ffn": {"narrower": "much"}}]},
        {"layers": [{"ffn": {"pays_most": 3}}]},
        {"kendall_tau": {"ffn": "high"}},
        {"not_measured": "all"},
    ],
)
def test_reasons_of_a_stranger_are_checked(why: Any) -> None:
    with pytest.raises(ValueError, match="why"):
        check_provenance({"why": why})
