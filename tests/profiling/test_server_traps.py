"""Traps of load tests: prefix caches, reasoning before the answer, and a machine that becomes slower meanwhile."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prunekit.cli.tables.operate.bench_server import show
from prunekit.profiling.server.config import ServerConfig
from prunekit.profiling.server.load import Shot, Volley
from prunekit.profiling.server.measured import Load, measured
from prunekit.profiling.server.report import Compared, Served, ServerReport
from prunekit.profiling.server.run import _drift, bench_server
from prunekit.profiling.server.statistics import trend
from prunekit.utils.endpoints.endpoint import Endpoint
from tests.support.scripted_server import Script, Scripted, answer, event, scripted, usage
from tests.support.shots import shot

QUICK: dict[str, Any] = {"requests": 6, "blocks": 2, "concurrency": (1,), "rates": (100.0,), "tokens": 3, "warmup": 3}
METRICS = "vllm:prefix_cache_queries_total {}\nvllm:prefix_cache_hits_total {}\n"


@pytest.mark.parametrize(
    ("hits", "said"), [(4, "The prefix cache of the endpoint held 10% of the prompts' tokens"), (0.2, "")]
)
def test_a_prefix_cache_that_helped_is_told_by_the_servers_counters(hits: float, said: str) -> None:
    """40 tokens are looked up for each request; the counters do not begin at 0."""
    servers: list[Scripted] = []

    def script(body: dict[str, Any], number: int) -> Script:
        servers[0].pages["/metrics"] = METRICS.format(1000 + 40 * (number + 1), 900 + hits * (number + 1))
        return answer(body["max_tokens"], ttft=0.002, tpot=0)

    with scripted(script, pages={"/metrics": METRICS.format(1000, 900)}) as server:
        servers.append(server)
        report = bench_server(server.url, config=ServerConfig(**QUICK, natural_tokens=0))
    asked = len(server.seen)
    assert report.served[0].cache_queries == 40 * asked and report.served[0].cache_hits == pytest.approx(hits * asked)
    told = [each for each in report.notes if "prefix cache" in each]
    assert bool(told) == bool(said) and (not told or told[0].startswith(said))


@pytest.mark.parametrize(("cached", "told"), [(6, True), (0, False), (None, False)])
def test_a_prefix_cache_that_helped_is_told_by_each_answer(cached: int | None, told: bool) -> None:
    def script(body: dict[str, Any], number: int) -> Script:
        made = answer(body["max_tokens"], ttft=0.002, tpot=0)
        more = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
        return Script((*made.pieces[:-2], (0.0, usage(8, body["max_tokens"], **more)), made.pieces[-1]))

    with scripted(script) as server:
        result = bench_server(server.url, config=ServerConfig(**QUICK, natural_tokens=0)).loads[0].results[0]
    assert result.cached_share == (None if cached is None else cached / 8)
    notes = [each for each in result.notes if "prefix cache" in each]
    assert notes == (["75% of the prompt tokens came from the server's prefix cache."] if told else [])


def reasoned(thinks: float, answers: bool = True) -> Callable[[dict[str, Any], int], Script]:
    """A thought after 10 ms, ``thinks`` seconds later a first word, and 10 ms later a second."""

    def said(**delta: str) -> bytes:
        return event({"model": "scripted", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def script(body: dict[str, Any], number: int) -> Script:
        words = [(thinks, said(content="yes")), (0.01, said(content="sir"))] if answers else []
        end = event({"model": "scripted", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        first = ((0.0, said(role="assistant")), (0.01, said(reasoning_content="hm")))
        return Script((*first, *words, (0.0, end), (0.0, usage(8, 3)), (0.0, event("[DONE]"))))

    return script


def test_the_first_token_of_the_answer_is_told_apart_from_reasoning(capsys: pytest.CaptureFixture[str]) -> None:
    config = ServerConfig(**QUICK, natural_tokens=0)
    with scripted(reasoned(0.2)) as dense, scripted(reasoned(0.1)) as pruned:
        ends = [Endpoint(each.url, api="chat") for each in (pruned, dense)]
        report = bench_server(ends[0], baseline=ends[1], config=config)
    load = report.loads[0]
    for each, least in zip(load.results, (0.21, 0.11), strict=True):
        ttft, first = each.ttft[0].value, each.first_answer[0].value
        assert ttft is not None and first is not None and each.reasoning == 1.0
        assert 0.01 <= ttft < 0.1 and least <= first and first - ttft >= 0.7 * least
        # All tokens count, those of the thought too.
        assert each.tokens == 3
        assert "6 of 6 answers held reasoning: TTFT is of its first token" in each.notes[0]
    ratio = load.ratios["first_answer"].value
    assert ratio is not None and 0.4 < ratio < 0.85
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))["loads"][0]["endpoint"]
    assert data["first_answer"][0]["value"] == load.results[1].first_answer[0].value
    rows = [row for row in report.rows() if row["load"] == load.results[0].load.name]
    assert all(row["first_answer"] - row["ttft"] > 0.07 for row in rows)
    show(report)
    assert "first answer token" in capsys.readouterr().out


def test_an_answer_that_is_all_reasoning_never_began() -> None:
    with scripted(reasoned(0.0, answers=False)) as server:
        report = bench_server(Endpoint(server.url, api="chat"), config=ServerConfig(**QUICK, natural_tokens=0))
    result = report.loads[0].results[0]
    assert result.first_answer[0].value == math.inf and result.failed == 0
    assert "6 ended before the answer itself began: allow more tokens" in result.notes[0]


def test_without_reasoning_there_is_one_first_token(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(lambda body, _: answer(body["max_tokens"], ttft=0.01, tpot=0)) as server:
        report = bench_server(server.url, config=ServerConfig(**QUICK, natural_tokens=0))
    result = report.loads[0].results[0]
    assert result.reasoning == 0 and result.first_answer == result.ttft
    show(report)
    assert "first answer token" not in capsys.readouterr().out


def courses(draw: random.Random, change: float, noise: float) -> list[list[tuple[float, float]]]:
    """Two closed loops and one of natural lengths, four turns of each of two servers, A B B A A B B A."""
    made = []
    for _ in range(3):
        for places in ((0, 3, 4, 7), (1, 2, 5, 6)):
            level = draw.gauss(0, 1)
            spots = [place / 7 for place in places]
            made.append([(spot, level + change * spot + draw.gauss(0, noise)) for spot in spots])
    return made


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
def test_a_drift_is_told_in_one_of_a_hundred_tests_without_one(noise: float) -> None:
    draw = random.Random(3)
    found = [trend(courses(draw, 0.0, noise)) for _ in range(1500)]
    small = sum(each.p is not None and each.p < 0.01 for each in found)
    # Three standard errors.
    assert abs(small / 1500 - 0.01) < 3 * math.sqrt(0.01 * 0.99 / 1500)
    assert sum(each.is_shown for each in found) <= small


def test_a_drift_that_matters_is_found() -> None:
    """15 % slower by the end of each load, and blocks that differ by 3 %."""
    draw = random.Random(4)
    found = [trend(courses(draw, math.log(1.15), 0.03)) for _ in range(300)]
    assert sum(each.is_shown for each in found) > 0.9 * 300
    mean = sum(each.change or 0.0 for each in found) / 300
    assert mean == pytest.approx(0.15, abs=0.01) and found[0].blocks == 24


def test_a_trend_needs_blocks() -> None:
    assert trend([]).p is None and trend([[(0.0, 1.0)], [(1.0, 2.0)]]).change is None
    # Two blocks of one server: a line through two points.
    assert trend([[(0.0, 0.0), (1.0, 1.0)]]).change is None
    exact = trend([[(0.0, 0.0), (0.5, 0.05), (0.75, 0.075), (1.0, 0.1)]])
    assert exact.change == pytest.approx(math.expm1(0.1)) and exact.p is not None and exact.p < 1e-6
    flat = trend([[(each / 3, 2.0) for each in range(4)]])
    assert flat.change == 0.0 and not flat.is_shown


def at(made: Shot, begin: float) -> Shot:
    moved = {name: getattr(made.answer, name) + begin for name in ("sent", "ended", "first")}
    return replace(made, scheduled=begin, answer=replace(made.answer, **moved))


@pytest.mark.parametrize(("tpots", "word"), [((10, 10.6, 11.1, 11.9), "rose"), ((12, 11.2, 10.8, 10), "fell")])
def test_a_load_test_tells_of_a_machine_that_throttles(tpots: tuple[float, ...], word: str) -> None:
    loads = []
    for kind in ("closed", "closed", "open"):
        # In an open loop a queue may grow, which is the load's doing.
        used = tpots if kind == "closed" else (10, 40, 90, 160)
        volleys = tuple(
            tuple(
                Volley(tuple(at(shot(0.1, tpot / 1000), 10 * block + side) for _ in range(5)), 5.0, 0.1)
                for block, tpot in enumerate(used)
            )
            for side in (0, 1)
        )
        results = tuple(measured(Load(kind, 1, 1.0), each) for each in volleys)
        loads.append(Compared(results, {}, volleys))
    served = (Served("a", "remote", None), Served("b", "remote", None))
    report = ServerReport(served, tuple(loads), None, ServerConfig(), {}, {})
    (note,) = _drift(report)
    assert note.startswith(f"The time of a token {word} by 1") and "16 turns" in note
    said = report.to_dict()["drift"]
    assert said["shown"] and said["blocks"] == 16 and (said["change"] > 0) == (word == "rose")
    steady = replace(report, loads=tuple(loads[2:]))
    assert _drift(steady) == [] and steady.drift.change is None
