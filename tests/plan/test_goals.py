"""Targets: what may be asked for, and which budgets it means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.plan.goals import Target, parse_size, parse_target
from prunekit.plan.methods import METHODS
from tests.support.fake_session import SMOLLM2

TOTAL, BLOCKS = 134_515_008, 106_202_880


@pytest.mark.parametrize(
    ("params", "blocks", "weights", "budget"),
    [
        ("0.8", None, None, int(0.8 * TOTAL)),
        ("100M", None, None, 100_000_000),
        ("0.1B", None, None, 100_000_000),
        ("1e8", None, None, 100_000_000),
        ("120000K", None, None, 120_000_000),
        ("99999999", None, None, 99_999_999),
        (None, "0.5", None, TOTAL - BLOCKS // 2),
        (None, None, "200MB", 100_000_000),
        (None, None, "100 MiB", 100 * 2**20 // 2),
        (None, None, "0.1GiB", int(0.1 * 2**30) // 2),
    ],
)
def test_budgets(params: str | None, blocks: str | None, weights: str | None, budget: int) -> None:
    assert parse_target(params, blocks, weights).budget(SMOLLM2, 2) == budget


@given(st.integers(1, 9_999))
def test_shares_lose_nothing_to_binary_fractions(ten_thousandths: int) -> None:
    """Exact arithmetic on the decimal number that was written."""
    budget = parse_target(f"{ten_thousandths / 10_000}", None, None).budget(SMOLLM2, 2)
    assert budget == ten_thousandths * TOTAL // 10_000


@given(st.integers(1, 10**6), st.sampled_from([("B", 1), ("KB", 10**3), ("MiB", 2**20), ("gib", 2**30)]))
def test_sizes(number: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{number}{unit[0]}", "--x") == number * unit[1]
    assert parse_size(f" {number} {unit[0]} ", "--x") == number * unit[1]


@given(st.text(max_size=12))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    for option in ("params", "blocks", "weights", "flops", "kv_cache"):
        try:
            target = parse_target(**{option: text})
        except PrunekitError:
            continue
        (goal,) = target.goals
        assert isinstance(target, Target) and goal.value > 0 and text in target.text


@pytest.mark.parametrize("text", ["4", "4GB/s", "-4GiB", "GiB", "0GiB", "1e13GiB", "four GiB", "nanGB", ""])
def test_no_sizes(text: str) -> None:
    with pytest.raises(PrunekitError, match=r"--max-shard .* is not a size; write"):
        parse_size(text, "--max-shard")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ((None, None, None), "at least one target"),
        (("0", None, None), "between 0 and 1"),
        (("0.0", None, None), "between 0 and 1"),
        (("1", None, None), "neither a share"),
        (("1.0", None, None), "neither a share"),
        (("5GiB", None, None), "neither a share"),
        (("eighty", None, None), "not a target"),
        ((None, "1.0", None), "not a share"),
        ((None, "50M", None), "not a share"),
        ((None, None, "0.5"), "not a size"),
    ],
)
def test_refused(given: tuple[str | None, str | None, str | None], part: str) -> None:
    with pytest.raises(PrunekitError, match=part):
        parse_target(*given)


@pytest.mark.parametrize("given", [("134515008", None, None), ("1B", None, None), (None, None, "1GiB")])
def test_nothing_to_prune(given: tuple[str | None, str | None, str | None]) -> None:
    with pytest.raises(PrunekitError, match=r"134,515,008 parameters .* leaves nothing to prune"):
        parse_target(*given).budget(SMOLLM2, 2)


def test_several_targets_must_all_be_met() -> None:
    target = parse_target("0.9", "0.5", "200MB", flops="0.75", context=100, kv_cache="12KB")
    budgets = target.budgets(SMOLLM2, 2)
    dense = SMOLLM2.flops_per_token(100)
    assert [(each.cost.name, each.limit, each.dense) for each in budgets] == [
        ("parameters", int(0.9 * TOTAL), TOTAL),
        ("parameters", TOTAL - BLOCKS // 2, TOTAL),
        ("parameters", 100_000_000, TOTAL),
        ("flops_per_token", dense * 3 // 4, dense),
        ("kv_bytes_per_token", 12_000, 23_040),
    ]
    assert target.budget(SMOLLM2, 2) == budgets.parameters == TOTAL - BLOCKS // 2
    assert target.text == "--params 0.9 --blocks 0.5 --weights 200MB --flops 0.75 --kv-cache 12KB"


@pytest.mark.parametrize(("text", "limit"), [("200M", 200_000_000), ("0.2G", 200_000_000), ("1e8", 100_000_000)])
def test_numbers_of_flops(text: str, limit: int) -> None:
    (budget,) = parse_target(flops=text).budgets(SMOLLM2, 2)
    assert budget.limit == limit


def test_what_is_slack_is_held_all_the_same() -> None:
    budgets = parse_target("0.8", flops="900M").budgets(SMOLLM2, 2)
    assert [each.limit < each.dense for each in budgets] == [True, False]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"flops": "0"}, ("--flops 0", "between 0 and 1")),
        ({"flops": "1.0"}, ("--flops 1.0", "neither a share", "200M")),
        ({"flops": "3 GiB"}, ("--flops 3 GiB", "neither a share")),
        ({"flops": "many"}, ("--flops many", "not a target")),
        ({"flops": "0.5", "context": -1}, ("--context", "got -1")),
        ({"params": "0.5", "context": 5}, ("--context", "add --flops")),
        ({"kv_cache": "1"}, ("--kv-cache 1", "12KB")),
        ({"kv_cache": "12 apples"}, ("--kv-cache 12 apples", "not a size")),
        ({"latency": "0.5"}, ("--latency 0.5", "--latency-table FILE", "prunekit latency-table")),
    ],
)
def test_refused_of_other_kinds(given: dict[str, str | int], parts: tuple[str, ...]) -> None:
    with pytest.raises(PrunekitError) as caught:
        parse_target(**given)  # type: ignore[arg-type]
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("given", "part"),
    [({"flops": "1T"}, "FLOPs a token, so --flops 1T"), ({"kv_cache": "1MB"}, "KV-cache bytes a token, so --kv-cache")],
)
def test_nothing_to_prune_of_other_kinds(given: dict[str, str], part: str) -> None:
    with pytest.raises(PrunekitError, match=f"{part}.* leaves nothing to prune"):
        parse_target(**given).budgets(SMOLLM2, 2)


@pytest.mark.parametrize("option", ["params", "blocks", "flops", "kv_cache"])
@pytest.mark.parametrize(("percent", "share"), [("80%", "0.8"), ("79 %", "0.79"), ("12.5%", "0.125"), (".5%", "0.005")])
def test_percents_are_shares(option: str, percent: str, share: str) -> None:
    (made,), (expected,) = (parse_target(**{option: text}).goals for text in (percent, share))
    assert (made.value, made.is_share) == (expected.value, True)


@pytest.mark.parametrize(
    ("option", "text"), [("params", "0%"), ("blocks", "100%"), ("flops", "120%"), ("weights", "80%"), ("params", "%")]
)
def test_percents_that_are_no_shares(option: str, text: str) -> None:
    with pytest.raises(PrunekitError, match=f"--{option} {text} is not a (target|size)"):
        parse_target(**{option: text})


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.allocation.draws_curves])
def test_methods_that_keep_to_parameters_only(name: str) -> None:
    parse_target("0.8", "0.7", "1GB").check_method(METHODS[name])
    with pytest.raises(PrunekitError, match=f"--kv-cache 0.5 needs .* optimal, .* --method prunekit .* {name}"):
        parse_target("0.8", kv_cache="0.5").check_method(METHODS[name])
    parse_target("0.8", kv_cache="0.5").check_method(METHODS["prunekit"])
