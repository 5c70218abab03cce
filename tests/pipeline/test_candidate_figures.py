"""The arithmetic behind candidates: sizes, intervals, users, latency, the front, shared text."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.pipeline.candidates.asked import read_format, read_sizes
from prunekit.pipeline.candidates.costs import CAME, Place, Read, latency_figures, memory_figures, read_tables
from prunekit.pipeline.candidates.figure import Figure, exact, mapped, measured, predicted, unknown
from prunekit.pipeline.candidates.overlap import share_seen
from prunekit.pipeline.candidates.words import why
from prunekit.plan import whole_plan
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.profiling.compare import ideal_prefill_ratio
from prunekit.report.front import front
from tests.plan.test_latency_table import SHAPE, made_up

CHECKED = Path(__file__).parents[2] / "benchmarks" / "results" / "candidates_checked_cpu.json"
HERE = Place(1000, None, {})


def test_sizes_are_named_as_they_are_said() -> None:
    sizes = read_sizes({"params": "0.9, 80%,1.0b"})
    assert [size.name for size in sizes] == ["0.9", "0.8", "1.0B"]
    assert [size.target.text for size in sizes] == ["--params 0.9", "--params 80%", "--params 1.0b"]
    (one,) = read_sizes({"params": None, "blocks": 0.5, "kv_cache": "0.7"})
    assert one.name == "0.5" and one.target.text == "--blocks 0.5 --kv-cache 0.7"
    assert [size.name for size in read_sizes({"params": [0.9, "0.8"]})] == ["0.9", "0.8"]


def test_sizes_by_latency_and_by_kv_cache() -> None:
    table = made_up({100: 10e-3})
    sizes = read_sizes({"latency": "0.9,80%,12 MS", "kv_cache": 0.5}, table)
    assert [size.name for size in sizes] == ["latency-0.9", "latency-0.8", "latency-12ms"]
    assert sizes[0].target.text == "--kv-cache 0.5 --latency 0.9" and sizes[0].target.table is table
    sizes = read_sizes({"params": "0.8", "kv_cache": [0.9, "0.5", "12kb"]}, table)
    assert [size.name for size in sizes] == ["kv-cache-0.9", "kv-cache-0.5", "kv-cache-12KB"]
    # Where nothing is asked of latency, a table only predicts.
    assert sizes[1].target.text == "--params 0.8 --kv-cache 0.5" and sizes[1].target.table is None
    (alone,) = read_sizes({"kv_cache": "0.5"})
    assert alone.name == "kv-cache-0.5"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"params": "0.9,0.8", "kv_cache": "0.9,0.8,0.7"}, r"several do \(--params 2 and --kv-cache 3 values\)"),
        ({"latency": "0.9,0.8"}, "needs --latency-table FILE"),
        ({"kv_cache": "0.9,90%"}, "--kv-cache names 90% twice"),
        ({"kv_cache": "12"}, "neither a share below 1 nor a size"),
        ({"kv_cache": "0.9,,0.8"}, "--kv-cache has an empty place"),
        ({}, "Say the sizes to compare"),
    ],
)
def test_lists_that_make_no_sense_are_refused(asked: dict[str, str], said: str) -> None:
    with pytest.raises(PrunekitError, match=said):
        read_sizes(asked)


@pytest.mark.parametrize(
    ("params", "blocks", "said"),
    [
        (None, None, "Say the sizes to compare"),
        ("0.9", "0.9", "one of the two"),
        ("", None, "empty place"),
        ("0.9,,0.8", None, "empty place"),
        ([], None, "empty place"),
        ("0.8,0.9,80%", None, "names 80% twice"),
        ("0", None, "must keep something"),
        ("1.5", None, "neither a share below 1 nor a count"),
        (None, "1.5", "not a share"),
        ("-0.5", None, "not a target"),
        ("0.9;0.8", None, "not a target"),
        ("nan", None, "not a target"),
        (",".join(f"0.{number}" for number in range(100, 200)), None, "64 are compared at most"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(params: str | None, blocks: str | None, said: str) -> None:
    with pytest.raises(PrunekitError, match=said):
        read_sizes({"params": params, "blocks": blocks})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gguff:q4_k_m", "did you mean 'gguf'"),
        ("gguf:q4_k_x", "no dtype 'q4_k_x'"),
        ("", "no format"),
        ("\x1b[2J", "x1b"),
    ],
)
def test_unknown_formats_are_refused(text: str, said: str) -> None:
    with pytest.raises(PrunekitError, match=said):
        read_format(text)


@pytest.mark.parametrize(
    ("text", "named", "rounds"),
    [
        ("gguf:q4_k_m", "gguf:q4_k_m", True),
        ("gguf", "gguf:f16", False),
        ("onnx:float32", "onnx:fp32", False),
        ("onnx-genai:int4", "onnx-genai:int4", True),
        ("hf:bfloat16", "hf:bf16", False),
    ],
)
def test_formats(text: str, named: str, rounds: bool) -> None:
    found = read_format(text)
    assert (found.text, found.rounds) == (named, rounds)


def test_an_interval_by_hand() -> None:
    # Four windows: 3 degrees of freedom, for which tables have 3.182.
    figure = measured(0.2, 0.01, 4, "how")
    assert (figure.low, figure.high) == (pytest.approx(0.2 - 0.03182, abs=1e-5), pytest.approx(0.23182, abs=1e-5))
    assert measured(0.01, 0.01, 4, "how", least=0).low == 0
    assert measured(0.99, 0.01, 4, "how", most=1).high == 1
    for error in (None, math.nan, math.inf):
        figure = measured(0.2, error, 1, "how")
        assert (figure.value, figure.low, figure.high) == (0.2, None, None)
    perplexity = mapped(measured(1.0, 0.1, 4, "how"), math.exp, "how")
    assert perplexity.value == pytest.approx(math.e) and perplexity.low == pytest.approx(math.exp(1 - 0.3182), abs=1e-4)


def test_what_no_float_holds_is_null() -> None:
    told = Figure(math.inf, "measured", "how", math.nan, 1.0).to_dict()
    assert told == {"value": None, "status": "measured", "low": None, "high": 1.0, "how": "how"}


def test_users_by_hand() -> None:
    """2 KV heads of 16 numbers in 3 layers: 2 · 2 · 16 · 3 numbers of 2 bytes a token are 384 bytes."""
    kv = SHAPE.kv_bytes_per_token(2)
    assert kv == 384
    weights, place = exact(1_000_000, "file"), Place(1000, 4_000_000, {})
    figures = memory_figures(weights, kv, place, "16 bits each")
    # (4,000,000 − 1,000,000) / 384,000 = 7.8.
    assert figures["users"].value == 7 and figures["users"].status == "exact"
    assert figures["memory_bytes"].value == 1_384_000 and figures["kv_bytes_per_token"].value == 384
    small = Place(1000, 900_000, {})
    assert memory_figures(weights, kv, small, "")["users"].value == 0
    without = memory_figures(weights, kv, HERE, "")["users"]
    assert without.value is None and without.status == "not measured" and "--device-memory" in without.how
    lost = memory_figures(unknown("no llama.cpp"), kv, place, "")
    assert lost["users"].value is None and "no llama.cpp" in lost["memory_bytes"].how


def test_latency_by_a_table_by_hand() -> None:
    """4 query heads take 4 ms, 100 channels 10 ms and the rest 1 ms: 43 ms; half of the channels in each: 28 ms."""
    table = made_up({50: 5e-3, 100: 10e-3})
    place = Place(8, None, read_tables([table], SHAPE))
    half = [LayerShape(4, 2, 50)] * 3
    shape, read = SHAPE.with_layers(half), Read(10)
    figures = latency_figures(SHAPE, half, shape, read, Read(20), 1, 2, place)
    assert figures["tpot_ratio"].value == pytest.approx(28 / 43) and figures["tpot_ratio"].status == "predicted"
    assert "latency table of decode" in figures["tpot_ratio"].how and "ideal" in figures["ttft_ratio"].how
    # A dropped layer takes no time.
    dropped = [LayerShape(4, 2, 100), LayerShape(0, 0, 0), LayerShape(4, 2, 100)]
    figures = latency_figures(SHAPE, dropped, SHAPE.with_layers(dropped[::2]), read, Read(20), 1, 2, place)
    assert figures["tpot_ratio"].value == pytest.approx(29 / 43)


def test_the_ideal_of_a_prompt_by_hand() -> None:
    """Hidden size 64, vocabulary 128, 3 layers of 4 query and 2 KV heads of 16. A prompt of 10 tokens: products of a
    layer are 2 · (4 · 2 · 16 · 64 + 2 · 2 · 16 · 64 + 3 · 64 · width) a token, attention 4 · 4 · 16 for each of
    0 + 1 + … + 9 = 45 pairs, and the output head runs for the last token alone."""
    half = SHAPE.with_layers([LayerShape(4, 2, 50)] * 3)

    def operations(width: int) -> int:
        products = 2 * (8 * 16 * 64 + 4 * 16 * 64 + 3 * 64 * width)
        return 3 * (10 * products + 45 * 4 * 4 * 16) + 2 * 128 * 64

    place, read = Place(10, None, {}), Read(10)
    figure = latency_figures(SHAPE, half.layers, half, read, Read(20), 1, 2, place)["ttft_ratio"]
    assert figure.value == pytest.approx(operations(50) / operations(100))
    assert figure.status == "predicted" and "a prompt of 10 tokens" in figure.how and "best" not in figure.how
    # One place, one formula: what bench calls ideal.
    assert figure.value == ideal_prefill_ratio(SHAPE, half, 10)


def test_what_is_predicted_has_the_range_of_earlier_predictions() -> None:
    """Of a gain of a quarter came 80 to 120 % for first tokens: the ratio lies from 0.7 to 0.8."""
    figure = predicted(0.75, "how", (0.8, 1.2))
    assert (figure.low, figure.high) == (pytest.approx(0.7), pytest.approx(0.8)) and figure.how == "how"
    # Slower than before is no gain either, and no time is negative.
    assert (predicted(1.1, "", (0.5, 2.0)).low, predicted(0.1, "", (0.5, 2.0)).low) == (pytest.approx(1.05), 0.0)
    without = predicted(0.75, "how")
    assert without.low is None and without.high is None and without.how.startswith("how; no interval")
    half = SHAPE.with_layers([LayerShape(4, 2, 50)] * 3)
    table = Place(8, None, read_tables([made_up({50: 5e-3, 100: 10e-3})], SHAPE))
    figures = latency_figures(SHAPE, half.layers, half, Read(10), Read(20), 1, 2, table)
    ideal = figures["ttft_ratio"]
    assert ideal.low is not None and ideal.high is not None and ideal.low < ideal.value < ideal.high < 1  # type: ignore[operator]
    assert "SmolLM2-135M" in ideal.how
    assert figures["tpot_ratio"].low is None and "no interval" in figures["tpot_ratio"].how
    quantised = latency_figures(SHAPE, SHAPE.layers, SHAPE, Read(10, rounded=True), Read(20), 1, 2, HERE)
    assert quantised["tpot_ratio"].low is None and "no interval" in quantised["tpot_ratio"].how


def test_the_range_is_that_of_the_sizes_that_were_measured() -> None:
    """And the ideal of each size follows from its widths, of which operations and bytes only need the sums."""
    rows = json.loads(CHECKED.read_text())["rows"]
    dense = ModelShape(576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30)
    seen: dict[str, list[float]] = {name: [] for name in CAME}
    for each in rows:
        sums = each["sums_of_widths"]
        heads, width = 2 * 64 * 576, 3 * 576
        removed = (270 - sums["query_heads"] + 90 - sums["kv_heads"]) * heads
        removed += (30 * 1536 - sums["ffn_channels"]) * width
        assert dense.weight_bytes(4) - 4 * removed == each["candidates"]["file_bytes"]["value"]
        for length, told in ((128, each["ideal_as_timed"]), (2048, each["candidates"])):
            pairs = length * (length - 1) // 2 * 4 * 64
            before = length * (dense.flops_per_token(0) - 2 * 49152 * 576) + pairs * 270 + 2 * 49152 * 576
            after = before - length * 2 * removed - pairs * (270 - sums["query_heads"])
            value = told["ttft_ratio"] if length == 128 else told["ttft_ratio"]["value"]
            assert value == pytest.approx(after / before, rel=1e-12)
        for name, ideal in each["ideal_as_timed"].items():
            found = each["measured_later"][name]
            seen[name] += [(1 - found[end]) / (1 - ideal) for end in ("p20", "p80")]
    for name, shares in seen.items():
        assert CAME[name] == (math.floor(100 * min(shares)) / 100, math.ceil(100 * max(shares)) / 100)


def test_ideal_latency_by_hand() -> None:
    rounded = latency_figures(
        SHAPE, SHAPE.layers, SHAPE, Read(1000, rounded=True), Read(4000), 2, 4, Place(100, None, {})
    )
    assert rounded["tpot_ratio"].value == pytest.approx((1000 + 200) / (4000 + 400))
    assert rounded["ttft_ratio"].value is None and rounded["ttft_ratio"].status == "not measured"
    nobody = latency_figures(SHAPE, SHAPE.layers, SHAPE, Read(None), Read(4000), 2, 4, HERE)
    assert nobody["tpot_ratio"].value is None


def test_the_reasons_that_say_most() -> None:
    def layer(index: int, kept: int, narrower: float | None, wider: float | None) -> dict[str, Any]:
        heads = {"kept": [2, 2], "dense": [2, 2], "narrower": None, "wider": None}
        ffn = {"kept": kept, "dense": 100, "narrower": narrower, "wider": wider}
        return {"index": index, "words": f"words {index}", "ffn": ffn, "attention": heads}

    layers = [layer(0, 90, 0.1, 0.02), layer(1, 20, 0.3, 0.01), layer(2, 100, 0.2, None), layer(3, 30, None, 0.04)]
    plan = whole_plan(SHAPE)
    told = replace(plan, provenance={"why": {"layers": layers}})
    # A layer is named once, by what says most of it.
    assert why(told) == ("layer 1 (dearest to cut): words 1", "layer 3 (next to be widened): words 3")
    layers[1]["ffn"]["narrower"] = None
    assert why(told) == (
        "layer 2 (dearest to cut): words 2",
        "layer 1 (cut deepest): words 1",
        "layer 3 (next to be widened): words 3",
    )
    assert (
        why(None) == why(plan) == why(replace(plan, provenance={"why": {"layers": [layer(0, 100, None, None)]}})) == ()
    )


def test_tables_of_others_or_of_one_phase_are_refused() -> None:
    table = made_up({100: 10e-3})
    with pytest.raises(PrunekitError, match="Two latency tables are of decode"):
        read_tables([table, table], SHAPE)
    with pytest.raises(PrunekitError, match="another geometry"):
        read_tables([table], ModelShape(32, 16, 128, False, (LayerShape(4, 2, 100),) * 3))


_NUMBERS = st.integers(0, 6).map(float)


@given(st.lists(st.none() | st.tuples(_NUMBERS, _NUMBERS), max_size=12))
def test_the_front_by_its_properties(points: list[tuple[float, float] | None]) -> None:
    told = front(points)
    known = [point for point in points if point is not None]
    best = {point for point, on in zip(points, told, strict=True) if on and point}
    assert not any(on for point, on in zip(points, told, strict=True) if point is None)
    assert bool(best) == bool(known)
    # Along the front what is larger is better, and everything else is beaten by one of the front.
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(sorted(best)))
    for point in known:
        assert (point in best) != any(b != point and b[0] <= point[0] and b[1] <= point[1] for b in best)


def test_shared_text_is_found_and_chance_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 50, (2000,), generator=generator)
    other = torch.randint(0, 50, (20, 64), generator=generator)
    assert share_seen(text, other) == 0
    assert share_seen(text, text[:1984].reshape(31, 64)) == pytest.approx(1984 / 2000)
    other[3, :40] = text[500:540]
    assert share_seen(text, other) == pytest.approx(40 / 2000)
    assert share_seen(text[:20], other) == 0 and share_seen(text, other[:, :20]) == 0


def test_the_front_does_not_depend_on_the_order() -> None:
    rng = random.Random(0)
    points = [(rng.random(), rng.random()) for _ in range(50)]
    told = dict(zip(points, front(points), strict=True))
    rng.shuffle(points)
    assert dict(zip(points, front(points), strict=True)) == told
