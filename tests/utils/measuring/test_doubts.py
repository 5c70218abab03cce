"""What speaks against believing a timing, on numbers and machines that are made up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.utils.measuring import load as load_module
from prunekit.utils.measuring.doubts import (
    FEWEST,
    Doubt,
    is_narrow,
    median_interval,
    of_drift,
    of_machine,
    of_ratio,
    of_spread,
    quantile,
)
from prunekit.utils.measuring.load import Counters, between, read_counters


def flags(doubts: list[Doubt]) -> list[str]:
    return [each.flag for each in doubts]


def coverage(count: int, rank: int) -> float:
    """The chance that the median lies between the ``rank``-th smallest and the ``rank``-th largest."""
    return 1 - 2 * sum(math.comb(count, each) for each in range(rank)) / 2**count


@pytest.mark.parametrize("count", [6, 7, 10, 25, 100, 499])
def test_the_interval_has_its_level_and_no_narrower_one_has(count: int) -> None:
    interval = median_interval(list(range(1, count + 1)))
    assert interval is not None
    rank = int(interval[0])
    assert interval[1] == count + 1 - rank
    assert coverage(count, rank) >= 0.95 > coverage(count, rank + 1)


def test_the_interval_of_known_tables() -> None:
    """Ranks as in tables of the sign test: 9 of 2 and 8, 10 of 2 and 9, 20 of 6 and 15."""
    for count, rank in ((9, 2), (10, 2), (20, 6), (50, 18)):
        assert median_interval(list(range(1, count + 1))) == (rank, count + 1 - rank)
    assert median_interval([1.0] * (FEWEST - 1)) is None
    # Many runs by the normal approximation, within a rank of the exact one.
    (low, high) = median_interval(list(range(1, 1202))) or (0, 0)
    assert coverage(1201, int(low) - 1) >= 0.95 and low + high == 1202


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval(generator.lognormal(0, 0.3, 15).tolist()) or (0, 0)
        held += low <= 1 <= high
    assert held / 2000 > 0.94


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(np.percentile(values, 100 * share))


def test_steady_runs_are_believed() -> None:
    dense = [1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.0]
    assert of_ratio(dense, [0.8 * each for each in dense], 0.8) == []


@pytest.mark.parametrize(
    ("dense", "pruned", "ideal", "expected"),
    [
        # Faster than the work allows.
        ([1.0] * 8, [0.6] * 8, 0.8, ["better-than-ideal"]),
        ([1.0] * 8, [0.78] * 8, 0.8, []),
        # Every other run of the pruned model is disturbed.
        ([1.0] * 8, [0.8, 1.2] * 4, 0.7, ["wide", "unsettled"]),
        # Half of the time both are slow: pairs agree, halves don't.
        ([1.0] * 4 + [1.3] * 4, [0.8] * 4 + [1.04] * 4, 0.8, ["drift", "drift"]),
        # A drift within the turns that pairs do not see and medians do.
        ([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0], [0.9, 0.9, 0.9, 1.8, 1.8, 1.8, 1.8], 0.5, ["contradiction"]),
        ([1.0] * 3, [0.8] * 3, 0.8, ["few"]),
    ],
)
def test_what_contradicts_itself(dense: list[float], pruned: list[float], ideal: float, expected: list[str]) -> None:
    found = flags(of_ratio(dense, pruned, ideal))
    assert set(expected) <= set(found)
    if expected != ["contradiction"]:
        assert found == expected


def test_a_median_on_the_other_side_of_1_contradicts() -> None:
    dense = [1.0, 1.0, 1.04, 1.08, 1.08]
    pruned = [1.015, 1.015, 1.055, 0.9, 0.9]
    found = {each.flag: each.why for each in of_ratio(dense, pruned, 0.5)}
    assert "The ratio of the medians is 0.976 and the median of the ratios 1.014" in found["contradiction"]


def test_sentences_tell_figures() -> None:
    (wide, unsettled) = of_spread([1.0, 1.0, 1.2, 1.2, 0.8, 0.8, 1.0], "the ratio")
    assert wide.why == (
        "p20 to p80 of the ratio is 0.840 to 1.160, wider than 10% of the median 1.000; runs do not repeat."
    )
    assert "After 7 runs the median of the ratio is between 0.800 and 1.200 (95 %)" in unsettled.why
    (drift,) = of_drift([0.010, 0.010, 0.012, 0.012], "The dense model")
    assert "took 10.00 ms in the first half of the runs and 12.00 ms in the second" in drift.why
    assert is_narrow([1.0] * FEWEST) and not is_narrow([1.0] * (FEWEST - 1))


def test_the_machine() -> None:
    assert of_machine(0.1, 0.01, 0, 2, 0.0) == []
    assert of_machine(None, None, None, 2) == []
    assert flags(of_machine(1.0, 0.5, 12, 2, 0.3)) == ["load", "steal", "throttled", "swap"]
    # One busy process is nothing on a large machine, and half of a small one.
    assert flags(of_machine(1.0, 0.0, 0, 64)) == []
    (load,) = of_machine(1.0, 0.0, 0, 2)
    assert load.why == "Other processes kept 1.00 of 2 CPUs busy meanwhile; stop them and run it again."


def counters(wall: float, **changed: float | None) -> Counters:
    values = {"busy": 0.0, "stolen": 0.0, "own": 0.0, "swapped": 0, "throttled": 0.0, **changed}
    return Counters(wall, 4, **values)  # type: ignore[arg-type]


def test_load_is_what_others_did() -> None:
    made = between(counters(0), counters(10, busy=15.0, own=10.0, stolen=1.0, swapped=7, throttled=4.0))
    assert (made.others, made.own, made.stolen, made.swapped, made.throttled) == (0.5, 1.0, 0.1, 7, 0.1)
    # Ticks are coarse: never below nothing.
    assert between(counters(0), counters(1, busy=0.99, own=1.0)).others == 0.0
    unknown = between(counters(0, busy=None, swapped=None), counters(1, busy=None, swapped=None))
    assert unknown.others is None and unknown.swapped is None


def test_counters_are_read_as_the_kernel_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_allowed", lambda: {1, 2})
    monkeypatch.setattr(load_module, "_ticks", lambda: 100)
    monkeypatch.setattr(load_module.os, "getpid", lambda: 50)
    (tmp_path / "stat").write_text(
        "cpu  900 0 0 0 0 0 0 0 0 0\ncpu0 700 0 0 1 0 0 0 9 0 0\ncpu1 100 20 30 9000 500 5 5 40 90 0\n"
        "cpu2 100 0 0 0 0 0 0 0 0 0\nintr 5\n"
    )
    (tmp_path / "vmstat").write_text("pgpgin 5\npswpin 3\npswpout 4\n")
    # 50 is this process, 51 its child with a hostile name, 52 a grandchild, 7 somebody else.
    for pid, parent, name, spent in (
        (50, 1, "python", (100, 50, 0, 0)),
        (51, 50, "a) R 1 (b", (20, 0, 5, 5)),
        (52, 51, "sh", (10, 0, 0, 0)),
        (7, 1, "other", (5000, 0, 0, 0)),
    ):
        (tmp_path / str(pid)).mkdir()
        fields = ["S", parent, *[0] * 9, *spent, 20]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")
    made = read_counters(lambda: 3.0, tmp_path)
    assert (made.wall, made.cpus) == (3.0, 2)
    assert made.busy == pytest.approx(2.6) and made.stolen == pytest.approx(0.4)
    assert made.own == pytest.approx(1.9) and made.swapped == 7


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    made = read_counters(proc=tmp_path / "none")
    assert (made.busy, made.stolen, made.own, made.swapped) == (None, None, None, None)
