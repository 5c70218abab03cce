"""What a request costs where the smaller model writes longer answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prunekit.cli.common import console
from prunekit.cli.tables.operate.bench_server import _show_cost
from prunekit.profiling.prices import Prices
from prunekit.profiling.server.config import ServerConfig, Slo
from prunekit.profiling.server.load import Volley
from prunekit.profiling.server.measured import Load, measured
from prunekit.profiling.server.money import length_notes, longer, money
from prunekit.profiling.server.report import Compared, Served, ServerReport
from prunekit.profiling.server.run import bench_server
from prunekit.profiling.server.slo import Capacity, Search
from prunekit.profiling.server.statistics import Ratio
from tests.support.scripted_server import Script, answer, scripted
from tests.support.shots import shot

PRICES = Prices(dollars_per_hour=3.6, utilisation=1.0, dollars_per_rework=1.0)


def report_of(*lengths: Ratio, characters: Ratio | None = None) -> ServerReport:
    """4 requests/s of the baseline within the SLO, 5 of the endpoint, and its natural lengths over the baseline's."""
    searches = tuple((Search("found", rate, ()),) for rate in (4.0, 5.0))
    both = [measured(Load(kind, 1), [Volley((shot(0.1),), 1.0, 0.1)]) for kind in ("closed", "natural")]
    loads = [Compared((both[0],) * 2, {"tokens": Ratio(1.0, 1.0, 1.0, 4)})]
    loads += [Compared((both[1],) * 2, {"tokens": each, "characters": characters or Ratio(None)}) for each in lengths]
    served = (Served("a", "remote", None), Served("b", "remote", None))
    return ServerReport(served, tuple(loads), Capacity(Slo(ttft=100), searches), ServerConfig(), {}, {})


def test_a_request_costs_more_where_answers_are_longer() -> None:
    """0.001 $ a second. Of equal lengths the endpoint saves a fifth: 0.00025 and 0.0002 $. With answers 1.31 times as
    long a request costs 0.000262 $, so nothing is saved: the sign turns."""
    even = money(report_of(), PRICES)
    assert [each[0].per_request.value for each in even.costs] == [pytest.approx(0.00025), pytest.approx(0.0002)]
    assert even.allowed_rework is not None and even.allowed_rework.value == pytest.approx(0.005)
    assert "both models' answers taken as equally long" in even.costs[1][0].per_request.how
    made = money(report_of(Ratio(1.31, 1.23, 1.38, 4)), PRICES)
    dense, pruned = (each[0].per_request for each in made.costs)
    assert dense.value == pytest.approx(0.00025) and pruned.value == pytest.approx(0.000262)
    assert (pruned.low, pruned.high) == (pytest.approx(0.000246), pytest.approx(0.000276))
    assert pruned.status == "estimated" and "1.31" in pruned.how
    allowed = made.allowed_rework
    assert allowed is not None and allowed.value == pytest.approx(-0.0012)
    assert (allowed.low, allowed.high) == (pytest.approx(-0.0026), pytest.approx(0.0004))
    # A token costs what it did.
    assert made.costs[1][0].per_million_tokens.value == even.costs[1][0].per_million_tokens.value


@pytest.mark.parametrize(
    ("ended", "why"), [("never broken", "was never broken"), ("time was up", "was not done, so it may be more")]
)
def test_of_a_load_that_may_be_more_costs_are_bounds(ended: Any, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of()
    searches = ((Search("found", 4.0, ()),), (Search(ended, 5.0, ()),))
    made = money(replace(report, capacity=Capacity(Slo(ttft=100), searches)), PRICES)
    dense, pruned = (each[0].per_request for each in made.costs)
    assert made.to_dict(report.names)["prices"] == PRICES.to_dict()
    assert (dense.bound, pruned.bound) == ("", "at most") and pruned.to_dict()["bound"] == "at most"
    assert made.allowed_rework is not None and made.allowed_rework.value is None
    assert f"of the endpoint {why}" in made.allowed_rework.how
    _show_cost(made.to_dict(report.names), report.names, console())
    assert "at most 0.0002" in " ".join(capsys.readouterr().out.split())


def test_blocks_give_costs_an_interval() -> None:
    searches = tuple(tuple(Search("found", rate * at, ()) for at in (0.8, 1.25)) for rate in (4.0, 5.0))
    made = money(replace(report_of(), capacity=Capacity(Slo(ttft=100), searches)), PRICES)
    dense = made.costs[0][0].per_request
    assert dense.value == pytest.approx(0.00025)
    assert (dense.low, dense.high) == (pytest.approx(0.0002), pytest.approx(0.0003125))
    allowed = made.allowed_rework
    assert allowed is not None and allowed.low is not None and allowed.high is not None
    # Both blocks have the same ratio, however much the loads differ: a fifth is saved.
    assert allowed.low == pytest.approx(0.005) and allowed.high == pytest.approx(0.005)
    searches = tuple(tuple(Search("found", rate, ()) for rate in rates) for rates in ((4.0, 4.0), (4.8, 5.2)))
    capacity = Capacity(Slo(ttft=100), searches)
    allowed = money(replace(report_of(), capacity=capacity), PRICES).allowed_rework
    assert allowed is not None and capacity.ratio.low is not None
    assert allowed.low == pytest.approx(100 * 0.00025 * (1 - 1 / capacity.ratio.low))


def test_characters_tell_where_tokens_are_not_counted() -> None:
    report = report_of(Ratio(None, failed=4, count=4), characters=Ratio(1.25, None, None, 1))
    assert longer(report).value == 1.25
    assert money(report, PRICES).costs[1][0].per_request.value == pytest.approx(0.00025)
    assert longer(report_of()).value is None and longer(report_of(Ratio(None))).value is None


def test_one_endpoint_alone_has_nothing_to_be_longer_than() -> None:
    report = report_of()
    alone = replace(report, served=report.served[1:], capacity=Capacity(Slo(), ((Search("found", 5.0, ()),),)))
    cost = money(replace(alone, loads=()), PRICES).costs[0][0].per_request
    assert cost.value == pytest.approx(0.0002) and "equally long" not in cost.how


@pytest.mark.parametrize(
    ("ratio", "told"), [(Ratio(1.31, 1.23, 1.38, 4), True), (Ratio(1.1, 0.9, 1.3, 4), False), (Ratio(1.3), False)]
)
def test_a_note_tells_of_longer_answers(ratio: Ratio, told: bool) -> None:
    notes = length_notes(report_of(ratio))
    assert bool(notes) is told
    assert not told or "1.31 times as long as the baseline's (1.23 to 1.38)" in notes[0]


def test_lengths_of_answers_that_were_cut_off_are_none() -> None:
    report = report_of(Ratio(1.0, 1.0, 1.0, 4))
    exact, natural = report.loads
    cut = replace(natural, results=tuple(replace(natural.results[0], truncated=share) for share in (0.0, 0.6)))
    made = replace(report, loads=(exact, cut))
    assert longer(report).value == 1.0 and longer(made).value is None
    (note,) = length_notes(made)
    assert "60% were cut off at 64 tokens" in note and "--natural-tokens" in note
    assert "both models' answers taken as equally long" in money(made, PRICES).costs[1][0].per_request.how


def test_a_load_test_tells_of_them_too() -> None:
    def script(tokens: int) -> Any:
        def made(body: dict[str, Any], number: int) -> Script:
            exact = body.get("ignore_eos")
            return answer(body["max_tokens"] if exact else tokens, ttft=0.004, tpot=0, finish="stop")

        return made

    config = ServerConfig(requests=8, blocks=4, concurrency=(1,), rates=(100.0,), tokens=3, warmup=3, natural_tokens=20)
    with scripted(script(4)) as dense, scripted(script(6)) as pruned:
        notes = bench_server(pruned.url, baseline=dense.url, config=config).notes
    (said,) = (each for each in notes if "By themselves" in each)
    assert "1.50 times as long as the baseline's (1.50 to 1.50)" in said and "by up to a factor of 1.50" in said


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (
            Ratio(1.31, 1.23, 1.38, 4),
            "costs as much as the baseline's or more: break-even is at -0.0012 (-0.0026 to 0.0004)",
        ),
        (Ratio(1.0, 0.9, 1.1, 4), "Nothing is saved where 0.005 (0.003 to 0.007) more of 100 answers"),
    ],
)
def test_break_even_in_words(capsys: pytest.CaptureFixture[str], ratio: Ratio, said: str) -> None:
    report = report_of(ratio)
    _show_cost(money(report, PRICES).to_dict(report.names), report.names, console())
    assert said in " ".join(capsys.readouterr().out.split())
