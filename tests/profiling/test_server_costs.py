"""Money and joules at the server, against sums done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import Prices, per_accepted_answer
from prunekit.profiling.server_costs import (
    AtLoad,
    Known,
    break_even,
    energy_of,
    server_cost,
    unknown,
)
from prunekit.profiling.server_energy import ELSEWHERE, IDLE, Meter, Window, above_idle, joules_of

# 3.6 $ an hour are a thousandth of a dollar a second.
PRICES = Prices(dollars_per_hour=3.6, dollars_per_rework=2.0)


def known(value: float, low: float | None = None, high: float | None = None) -> Known:
    return Known(value, "measured", "counted", low, high)


def at(requests: Known, tokens: Known | None = None) -> AtLoad:
    return AtLoad(requests, tokens or known(1000.0))


def test_a_request_and_a_million_tokens() -> None:
    made = server_cost(at(known(4.0, 2.0, 5.0)), PRICES, 0.5)
    # 0.001 $/s over 4 requests/s, of which half of the hour is used; the ends turn round.
    assert made.per_request.value == pytest.approx(0.0005)
    assert made.per_request.low == pytest.approx(0.0004) and made.per_request.high == pytest.approx(0.001)
    assert made.per_million_tokens.value == pytest.approx(2.0) and made.per_million_tokens.low is None
    assert made.per_request.status == "estimated" and "within the SLO" in made.per_request.how
    assert made.to_dict()["per_request"]["value"] == pytest.approx(0.0005)


def test_what_is_missing_is_not_measured() -> None:
    lost = unknown("nobody asked")
    made = server_cost(AtLoad(lost, known(0.0)), PRICES, 1.0)
    assert (made.per_request.value, made.per_request.how) == (None, "nobody asked")
    assert made.per_million_tokens.how == "the SLO was met at no load that was tried"
    power = Prices(dollars_per_kwh=0.36)
    assert "no hour is priced" in server_cost(at(known(1.0)), power, 1.0).per_request.how
    assert break_even(lost, known(1.0), PRICES).how == break_even(known(1.0), lost, PRICES).how == "nobody asked"
    assert "dollars_per_rework" in break_even(known(1.0), known(1.0), Prices(dollars_per_hour=1)).how
    # An interval that reaches 0 has no upper end of cost.
    open_end = server_cost(at(known(1.0, 0.0, 2.0)), PRICES, 1.0).per_request
    assert open_end.value == pytest.approx(0.001) and (open_end.low, open_end.high) == (None, None)


def test_break_even() -> None:
    # 0.0005 $ a request saved over 1 $ a rework: 0.05 percentage points.
    one = Prices(dollars_per_hour=3.6, dollars_per_rework=1.0)
    assert break_even(known(0.0015), known(0.001), one).value == pytest.approx(0.05)
    made = break_even(known(0.0015, 0.0014, 0.0016), known(0.001, 0.0009, 0.0011), one)
    assert (made.low, made.high) == (pytest.approx(0.03), pytest.approx(0.07))
    assert break_even(known(0.001), known(0.0015), one).value == pytest.approx(-0.05)
    assert break_even(known(5.0), known(1.0), one).value == 100.0


@given(
    dense=st.floats(1e-6, 1.0),
    share=st.floats(0.05, 1.0),
    rework=st.floats(0.01, 100.0),
    before=st.floats(0.0, 0.2),
)
def test_at_the_break_even_an_accepted_answer_costs_the_same(
    dense: float, share: float, rework: float, before: float
) -> None:
    prices = Prices(dollars_per_hour=1.0, dollars_per_rework=rework)
    points = break_even(known(dense), known(dense * share), prices).value
    assert points is not None
    after = before + points / 100
    if points == 100 or after > 1:  # never more than all answers
        return
    first = per_accepted_answer(dense, rework_share=before, dollars_per_rework=rework)
    second = per_accepted_answer(dense * share, rework_share=after, dollars_per_rework=rework)
    assert second == pytest.approx(first)


@given(rate=st.floats(0.01, 1e5), width=st.floats(0.0, 0.9))
def test_a_cost_lies_in_its_interval(rate: float, width: float) -> None:
    made = server_cost(at(known(rate, rate * (1 - width), rate * (1 + width))), PRICES, 1.0).per_request
    assert made.low is not None and made.high is not None and made.value is not None
    assert made.low <= made.value <= made.high


def test_energy() -> None:
    spent = Known(500.0, "measured", "rapl", 400.0, 600.0)
    each = energy_of(spent, 2000, "output tokens")
    assert (each.value, each.low, each.high) == (0.25, 0.2, 0.3) and each.how == "rapl, over 2000 output tokens"
    assert energy_of(spent, 0, "requests").how == "no requests were counted in the windows"
    assert energy_of(unknown("no sensor"), 3, "requests").how == "no sensor"


class Counter:
    """Draws what it is told in each window; a text is what fails."""

    method, scope = "zeus", "cpu package, whole socket"

    def __init__(self, *windows: float | str):
        self.left = [*windows]

    def begin(self) -> None:
        if self.left[0] == "begin":
            raise PrunekitError("the counter can't be read.")

    def end(self) -> float:
        found = self.left.pop(0)
        if isinstance(found, str):
            raise PrunekitError(found)
        return found


def metered(*windows: float | str, seconds: float = 20.0) -> tuple[Meter, list[Window]]:
    clock = iter([place * seconds for place in range(2 * len(windows))])
    meter = Meter(Counter(*windows), now=lambda: next(clock))
    for _ in windows:
        with meter.window("endpoint"):
            pass
    return meter, meter.windows["endpoint"]


def test_windows_of_a_counter_that_moves() -> None:
    meter, windows = metered(100.0, 120.0, 140.0)
    assert meter.told == "zeus, cpu package, whole socket"
    made = joules_of(windows, meter.told)
    # 5, 6 and 7 W: a standard error of 1/√3 W, and Student's 4.303.
    assert made.value == 360.0 and made.high == pytest.approx(360 + 60 * 4.302653 / math.sqrt(3))
    assert made.how == "zeus, cpu package, whole socket; 3 windows, 60 s"
    assert joules_of(windows[:2]).low is None


@pytest.mark.parametrize(
    ("windows", "seconds", "why"),
    [
        ((100.0, 0.0), 20.0, "the counter did not move"),
        ((100.0, -5.0), 20.0, "the counter was reset or wrapped while it was read"),
        ((float("nan"),), 20.0, "was reset or wrapped"),
        (("the driver is gone.",), 20.0, "the driver is gone"),
        (("begin",), 20.0, "the counter can't be read"),
        # Together they would be long enough, but a counter errs in each.
        ((50.0,) * 5, 4.0, "a window of 4.0 s is too short, a counter needs 10 s; ask for more requests"),
    ],
)
def test_windows_of_a_counter_that_does_not(windows: Any, seconds: float, why: str) -> None:
    made = joules_of(metered(*windows, seconds=seconds)[1])
    assert made.value is None and made.status == "not measured" and why in made.how


def test_energy_above_the_idle_machine() -> None:
    meter, windows = metered(100.0, 120.0, 140.0)
    joules = joules_of(windows, meter.told)
    assert above_idle(windows, joules, meter.idle_watts).how == "there was no time for an idle window"
    meter.windows[IDLE] = [Window(30.0, 60.0)]
    idle = meter.idle_watts
    assert idle.value == 2.0 and idle.status == "measured"
    # 360 J in 60 s, of which the machine takes 2 W anyhow.
    made = above_idle(windows, joules, idle)
    assert made.value == 240.0 and made.high == pytest.approx((joules.high or 0) - 120) and "less 2 W idle" in made.how
    assert above_idle(windows, joules, Known(6.0, "measured", "")).value is None
    assert above_idle(windows, unknown("no sensor"), idle).how == "no sensor"
    assert Meter.of("cpu", here=False).idle_watts.how == ELSEWHERE


def test_how_long_the_machine_idles() -> None:
    """30 s, at most a tenth of the time that is left, and never less than a counter needs."""
    meter, _ = metered(1.0)
    assert [meter.idle_seconds(left) for left in (600, 200, 99, -1)] == [30, 20, 0, 0]
    assert Meter.of("cpu", here=False).idle_seconds(600) == 0


def test_no_counter() -> None:
    meter = Meter.of("cpu", here=False)
    with meter.window("endpoint"):
        pass
    assert joules_of(meter.windows["endpoint"]).how == ELSEWHERE == meter.told
    assert joules_of([]).how == "no window was measured"
    assert "no counter of tpu" in Meter.of("tpu", here=True).told
