"""Latency tables: measured by the command, read back, interpolated, and refused where they are of another model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.models.source import Source, resolve
from prunekit.plan import Plan
from prunekit.plan.goals import parse_target
from prunekit.plan.latency_table import LatencyTable, isotonic
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.profiling import sublayer_latency as latency
from prunekit.profiling.sublayer_latency import LatencyConfig, layer_kinds, measure_table, width_grid
from prunekit.utils.timing import Summary
from tests.support.command import QUICK, Command, save_tiny, write_text
from tests.support.tiny import MODEL_TYPES, one_thread

SHAPE = ModelShape(64, 16, 128, False, (LayerShape(4, 2, 100),) * 3)


@pytest.fixture(scope="module", autouse=True)
def _small_and_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(latency, "_WORKING_SET", {"prefill": 1 << 18, "decode": 1 << 18})
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return resolve(str(save_tiny(tmp_path_factory.mktemp("latency") / "tiny-llama")))


def made_up(times: dict[int, float], shape: ModelShape = SHAPE, rest: float = 1e-3) -> LatencyTable:
    """A table whose attention takes a millisecond a query head."""

    def summary(seconds: float) -> Summary:
        return Summary(seconds, seconds, seconds, 1)

    attention = {(kv, group): summary(kv * group * 1e-3) for kv in (2, 1) for group in (2, 1)}
    ffn = {width: summary(seconds) for width, seconds in times.items()}
    conditions = {"phase": "decode", "batch": 1, "length": 8, "dtype": "float32", "threads": 1}
    return LatencyTable(
        "made-up",
        shape,
        ("full_attention",) * len(shape.layers),
        {"full_attention": attention},
        ffn,
        summary(rest),
        conditions,
        {"device": "cpu"},
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_is_measured(model_type: str, phase: str, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "model", model_type)))
    table = measure_table(
        source, LatencyConfig(2, 16, phase, widths=3, repeats=2, warmup=1), dtype="bfloat16", device="cpu"
    )
    assert table.kinds == layer_kinds(source.config) and set(table.attention) == set(table.kinds)
    choices = set(itertools.product((1, 2, 3, 4), (1, 2)))
    assert all(set(measured) == choices for measured in table.attention.values())
    assert sorted(table.ffn) == [1, 32, 64, 96]
    assert table.conditions["dtype"] == "bfloat16" and table.conditions["phase"] == phase
    assert all(each.count == 2 for measured in table.attention.values() for each in measured.values())
    table.check(source.shape)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_what_is_timed_takes_turns(source: Source) -> None:
    """Ticks of a clock that only counts: each case is measured as often as was asked, forth and back."""
    ticks = itertools.count()
    table = measure_table(
        source, LatencyConfig(length=8, widths=2, repeats=5, warmup=1), device="cpu", clock=lambda: float(next(ticks))
    )
    cases = 8 + 3 + 1
    assert next(ticks) == 2 * cases * 6
    assert table.rest == Summary(1.0, 1.0, 1.0, 5)
    # A tick is shared by the sub-layers of a stack.
    assert {summary.median for summary in table.ffn.values()} == {0.25}


def test_widths_between_are_interpolated() -> None:
    table = made_up({10: 1e-3, 50: 2e-3, 100: 2.5e-3})
    cost = table.cost()
    assert [cost.ffn(0, width) for width in (1, 10, 30, 50, 75, 100)] == [
        1_000_000,
        1_000_000,
        1_500_000,
        2_000_000,
        2_250_000,
        2_500_000,
    ]
    assert cost.of(SHAPE.layers) == 1_000_000 + 3 * (4_000_000 + 2_500_000)
    assert cost.value(cost.of(SHAPE.layers)) == 0.0205


@given(st.dictionaries(st.integers(1, 99), st.floats(1e-6, 1e-3), max_size=9), st.floats(1e-6, 1e-3))
def test_a_wider_ffn_never_costs_less(times: dict[int, float], widest: float) -> None:
    cost = made_up({**times, 100: widest}).cost()
    costs = [cost.ffn(0, width) for width in range(1, 101)]
    assert costs == sorted(costs)
    known = [*times.values(), widest]
    assert min(known) * 1e9 - 1 <= costs[0] and costs[-1] <= max(known) * 1e9 + 1


def test_isotonic_averages_what_falls() -> None:
    assert isotonic([1, 2, 3]) == [1, 2, 3]
    assert isotonic([1, 4, 2, 5]) == [1, 3, 3, 5]
    assert isotonic([3, 2, 1]) == [2, 2, 2]


@given(st.integers(1, 30_000), st.integers(2, 40))
def test_grids(dense: int, points: int) -> None:
    grid = width_grid(dense, points)
    assert grid == sorted(set(grid)) and grid[-1] == dense and grid[0] >= 1 and len(grid) <= points + 2
    if dense >= 256:
        assert all(width % 64 == 0 for width in grid[:-1])


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (replace(SHAPE, hidden_size=128), "its hidden_size is 64, here it is 128"),
        (replace(SHAPE, qkv_bias=True), "its qkv_bias is False, here it is True"),
        (SHAPE.with_layers(SHAPE.layers[:2]), "it has 3 layers, here there are 2"),
        (SHAPE.with_layers((*SHAPE.layers[:2], LayerShape(4, 4, 100))), "its layer 2 is 4/2 heads and 100 channels"),
        (SHAPE.with_layers((LayerShape(4, 2, 101), *SHAPE.layers[1:])), "here 4/2 heads and 101 channels"),
    ],
)
def test_another_geometry_is_refused(other: ModelShape, part: str) -> None:
    with pytest.raises(PrunekitError, match="measured for made-up, which has another geometry") as caught:
        parse_target(latency="0.5", table=made_up({100: 1e-3})).budgets(other, 2)
    assert part in str(caught.value)


def test_a_model_pruned_before_needs_no_table_of_its_own() -> None:
    made_up({100: 1e-3}).check(SHAPE.with_layers((LayerShape(2, 1, 50), *SHAPE.layers[1:])))


def test_latency_budgets() -> None:
    table = made_up({100: 1e-3})
    (share,) = parse_target(latency="0.5", table=table).budgets(SHAPE, 2)
    assert (share.dense, share.limit) == (16_000_000, 8_000_000)
    for text in ("12ms", "0.012s", "12000 us"):
        (budget,) = parse_target(latency=text, table=table).budgets(SHAPE, 2)
        assert budget.limit == 12_000_000
    with pytest.raises(PrunekitError, match=r"has 16\.000 ms of predicted latency, so --latency 20ms leaves nothing"):
        parse_target(latency="20ms", table=table).budgets(SHAPE, 2)
    for text in ("12", "12h", "1.0"):
        with pytest.raises(PrunekitError, match=f"--latency {text} is neither a share below 1 nor a time such as 12ms"):
            parse_target(latency=text, table=table)
    with pytest.raises(PrunekitError, match="add --latency"):
        parse_target("0.5", table=table)


def _spoilt(change: Any) -> dict[str, Any]:
    data = json.loads(made_up({100: 1e-3}).to_json())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: data.update(format="x"), "is not a latency table"),
        (lambda data: data.update(version=2), "latency table version 2"),
        (lambda data: data.pop("rest"), "damaged latency table \\('rest'\\)"),
        (lambda data: data["rest"].update(median=-1), "not a positive number"),
        (lambda data: data["rest"].update(median=float("nan")), "not a positive number"),
        (lambda data: data["attention"]["full_attention"].pop(0), "no time for 2 KV heads of 2 query heads each"),
        (lambda data: data["ffn"][0].update(intermediate_size=99), "no time for an FFN of 100"),
        (lambda data: data["ffn"][0].update(intermediate_size=10**12), "wider than any"),
        (lambda data: data.update(kinds=["full_attention"]), "kinds of 1 layers of 3"),
        (lambda data: data.update(attention=[]), "damaged"),
    ],
)
def test_damaged_tables(change: Any, part: str) -> None:
    with pytest.raises(PrunekitError, match=part):
        LatencyTable.from_dict(_spoilt(change), "t.json")


@pytest.mark.parametrize("given", [{"phase": "x"}, {"batch": 0}, {"length": 0}, {"widths": 1}, {"threads": 0}])
def test_settings_are_checked(given: dict[str, Any]) -> None:
    with pytest.raises(PrunekitError, match="must be"):
        LatencyConfig(**given)


def test_by_the_commands(command: Command, source: Source, tmp_path: Path) -> None:
    table, text, plan = tmp_path / "table.json", write_text(tmp_path / "text.txt"), tmp_path / "plan.json"
    settings = ("--phase", "decode", "--length", "32", "--widths", "4", "--repeats", "5", "--device", "cpu")
    shown = command("latency-table", source.path, "-o", table, *settings)
    assert shown.code == 0 and shown.err == "", shown
    assert "8 query and 4 KV heads" in shown.out and "FFN, 96 channels" in shown.out and "--latency 0.7" in shown.out
    measured = command("latency-table", source.path, "-o", table, *settings, "--overwrite", "--json").json
    assert measured["dense_seconds"] > 0 and measured["conditions"]["phase"] == "decode"
    # Sub-layers so small take as long whatever their width; larger ones would take times like these.
    for each in (*measured["attention"]["full_attention"], *measured["ffn"]):
        each["median"] = 1e-5 * each.get("num_attention_heads", 0) + 1e-6 * each.get("intermediate_size", 0)
    measured["rest"]["median"] = 1e-5
    table.write_text(json.dumps(measured))
    targets = ("--params", "0.9", "--flops", "0.8", "--context", "64", "--kv-cache", "0.75")
    targets = (*targets, "--latency", "0.9", "--latency-table", table)
    method = (
        "--method",
        "adapt-pruner",
        "--set",
        "allocation=optimal",
        "--set",
        "units=ffn,kv,query",
        "--calib",
        text,
        *QUICK,
    )
    made = command("plan", source.path, "-o", plan, *targets, *method, "--json").json
    shape, said = Plan.load(plan).shape, made["target"]
    assert said == Plan.load(plan).provenance["target"] and said["parameters"] == int(0.9 * source.shape.parameters)
    assert said["asked"] == "--params 0.9 --flops 0.8 --kv-cache 0.75 --latency 0.9"
    costs = [shape.parameters, shape.flops_per_token(64), shape.kv_bytes_per_token(4)]
    assert [each["pruned"] for each in said["budgets"][:3]] == costs
    assert [each["cost"] for each in said["budgets"]][3] == "latency_seconds"
    for each in said["budgets"]:
        assert 0 < each["pruned"] <= each["at_most"] < each["dense"]
    assert said["budgets"][1]["context"] == 64 and said["budgets"][3]["phase"] == "decode"
    assert said["budgets"][3]["table"] == LatencyTable.load(table).fingerprint
    people = command("prune", source.path, "-o", tmp_path / "out", *targets, *method)
    assert people.code == 0 and "Targets" in people.out and "--kv-cache 0.75" in people.out, people
    beside = command("prune", source.path, "-o", tmp_path / "new", "--plan", plan, "--context", "5")
    assert beside.code == 2 and "--context would have no effect" in beside.err


def test_an_allocation_by_the_command(command: Command, source: Source, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    options = ("--method", "adapt-pruner", "--set", "allocation=optimal")
    text = write_text(tmp_path / "text.txt")
    made = command(
        "plan",
        source.path,
        "-o",
        plan,
        "--flops",
        "0.8",
        "--kv-cache",
        "0.8",
        *options,
        "--calib",
        text,
        *QUICK,
        "--json",
    )
    assert made.code == 0, made
    assert all(each["pruned"] <= each["at_most"] for each in made.json["target"]["budgets"])
    assert "parameters" not in made.json["target"]
