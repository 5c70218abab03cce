"""Targets: what may be asked for, and how many parameters it means."""

from __future__ import annotations

import pytest
from fake_session import SMOLLM2
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.targets import Target, parse_size, parse_target

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
    for kind in range(3):
        given = [text if place == kind else None for place in range(3)]
        try:
            target = parse_target(*given)
        except PrunekitError:
            continue
        assert isinstance(target, Target) and target.value > 0 and text in target.text


@pytest.mark.parametrize("text", ["4", "4GB/s", "-4GiB", "GiB", "0GiB", "1e13GiB", "four GiB", "nanGB", ""])
def test_no_sizes(text: str) -> None:
    with pytest.raises(PrunekitError, match=r"--max-shard .* is not a size; write"):
        parse_size(text, "--max-shard")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ((None, None, None), "got 0"),
        (("0.8", "0.8", None), "got 2"),
        (("0.8", "0.8", "1GB"), "got 3"),
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
