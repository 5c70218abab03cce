"""Load tests against a server with known delays: times, goodput, coordinated omission, and servers that misbehave."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.profiling import server_energy
from prunekit.profiling.prices import Prices
from prunekit.profiling.server import joules, run, session
from prunekit.profiling.server.config import ServerConfig, Slo, parse_slo
from prunekit.profiling.server.load import Gun, Shot, Volley, closed, open_loop
from prunekit.profiling.server.measured import Load, measured
from prunekit.profiling.server.money import money
from prunekit.profiling.server.report import Compared, Served, ServerReport, write_report, write_rows
from prunekit.profiling.server.run import bench_server
from prunekit.profiling.server.session import Budget, Ended, Session
from prunekit.profiling.server.slo import Bracket, Capacity, Probe, Search, hopeless, judge, probe_size
from prunekit.profiling.server.statistics import quantile, ranks, ratio_of
from prunekit.profiling.server.traces import load_workload
from prunekit.profiling.server.warmup import Warm, is_steady
from prunekit.profiling.server.workload import Job, Workload, arrivals
from prunekit.profiling.server_energy import Meter
from prunekit.utils.endpoints.answer import Limits
from prunekit.utils.endpoints.client import opened
from prunekit.utils.endpoints.endpoint import Endpoint
from prunekit.utils.endpoints.naming import shown_model
from tests.support.scripted_server import Script, Scripted, answer, free_port, scripted
from tests.support.shots import shot

LIMITS = Limits(connect=2, first=5, gap=5, total=20)
JOB = Job("a b c d", 4, 5)


def fire(url: str, run: Callable[[Gun], Any]) -> Any:
    async def session() -> Any:
        endpoint = Endpoint(url, "scripted")
        async with opened(endpoint) as client:
            return await run(Gun(client, endpoint, LIMITS))

    return asyncio.run(session())


def median(values: Any) -> float:
    value = values[0].value
    assert value is not None
    return float(value)


def true_times(server: Scripted, volley: Volley) -> dict[str, float]:
    """Median seconds by when the server, which is in this process, did write: a busy machine is late on both sides."""
    wrote = {name: times for name, times in server.wrote}
    times = [(wrote[each.answer.id], each) for each in volley.shots]
    return {
        "ttft": statistics.median(each[0] - shot.scheduled for each, shot in times),
        "e2e": statistics.median(each[-3] - shot.scheduled for each, shot in times),
        "tpot": statistics.median((each[-3] - each[0]) / 4 for each, _ in times),
    }


def test_a_closed_loop_measures_what_the_server_does() -> None:
    """TTFT 30 ms, TPOT 10 ms, E2E 70 ms, within 5 ms; a chunk of three tokens changes nothing."""
    with scripted(lambda *_: answer(5, ttft=0.03, tpot=0.01, a_chunk=3)) as server:
        for number in range(25):
            until, name = time.perf_counter() + 60, f"t{number}"
            volley = fire(server.url, lambda gun: closed(gun, [JOB] * 6, 1, name, until, True))  # noqa: B023
            made, true = measured(Load("closed", 1), [volley]), true_times(server, volley)
            assert made.length_ratio == 1.0 and made.failed == 0
            assert true["ttft"] >= 0.03 and true["e2e"] >= 0.07
            if all(abs(median(getattr(made, each)) - true[each]) < 0.005 for each in true):
                return
    pytest.fail(f"never within 5 ms: {made.ttft[0]} {made.tpot[0]} {made.e2e[0]} against {true}")


def test_latency_counts_from_the_time_at_which_a_request_was_to_be_sent() -> None:
    """Coordinated omission: one slot of 100 ms, a request every 50 ms. The n-th waits n * 50 ms more than the first,
    and that is in its TTFT: 0.25 s of the fourth of eight."""
    with scripted(lambda *_: answer(1, ttft=0.1, tpot=0), slots=1) as server:
        for number in range(25):
            until, name = time.perf_counter() + 60, f"t{number}"
            times = [0.05 * each for each in range(8)]
            volley = fire(server.url, lambda gun: open_loop(gun, [JOB] * 8, times, name, until, True))  # noqa: B023
            wrote = {name: times for name, times in server.wrote}
            true = sorted(wrote[each.answer.id][0] - each.scheduled for each in volley.shots)
            made = median(measured(Load("open", rate=20), [volley]).ttft)
            # Sent when it was due, not when the server had answered the one before.
            assert len(volley.shots) == 8 and made >= 0.249
            if abs(made - true[3]) < 0.005:
                return
    pytest.fail(f"never within 5 ms: {made} against {true}")


def test_an_open_loop_does_not_sleep_past_its_end() -> None:
    """A request of 0 s and one of 5 s, within 0.3 s; and none of 5 s alone."""
    with scripted(lambda *_: answer(1, ttft=0.01, tpot=0)) as server:
        for times, made in (([0.0, 5.0], 1), ([5.0], 0)):
            begin = time.perf_counter()
            jobs, until = [JOB] * len(times), begin + 0.3
            volley = fire(server.url, lambda gun: open_loop(gun, jobs, times, "t", until, True))  # noqa: B023
            assert len(volley.shots) == made and volley.cut == "time was up"
            assert time.perf_counter() - begin < 3


def test_no_turn_begins_when_the_time_of_all_is_up() -> None:
    """Eight turns of 0.4 s; all is over after 0.1 s, and each side has one."""
    with scripted(lambda *_: answer(1, ttft=0.4, tpot=0)) as server:
        config = ServerConfig(requests=8, blocks=4, tokens=1, timeout=2)

        async def measure(gun: Gun) -> Session:
            session = Session(config, [gun, gun], load_workload(config, "r"))
            await session._measure("closed", Load("closed", 1), Budget(time.perf_counter() + 0.1, {}))
            return session

        made = fire(server.url, measure)
    assert [len(each) for each in made.loads[0].volleys] == [1, 1]


def test_a_client_that_is_late_voids_the_load() -> None:
    made = measured(Load("open", rate=1), [Volley(tuple(shot(0.2, late=0.1) for _ in range(20)), 20.0, 0.1)])
    assert "late by 100 ms" in made.void[0] and median(made.ttft) == 0.2
    busy = measured(Load("open", rate=1), [Volley((shot(0.2),), 1.0, 0.95)])
    assert "95% of a CPU" in busy.void[0]


def test_failures_count_as_infinite() -> None:
    shots = [shot(0.1) for _ in range(70)] + [shot(0.1, error="reset") for _ in range(30)]
    made = measured(Load("closed", 1), [Volley(tuple(shots), 10.0, 0.1)], Slo(ttft=200))
    assert made.failed == 30 and made.errors == {"reset": 30}
    assert median(made.ttft) == 0.1 and made.ttft[1].value == math.inf
    assert made.goodput == 7.0 and made.good_share == 0.7
    data = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert data["ttft"][1]["value"] is None and "value" in data["ttft"][1]["failed"]


def test_goodput_needs_every_bound() -> None:
    shots = (shot(0.1), shot(0.3), shot(0.1, 0.2), shot(0.1, tokens=1))
    made = measured(Load("closed", 1), [Volley(shots, 2.0, 0.1)], Slo(ttft=200, tpot=50))
    assert made.goodput == 1.0
    # A token alone has no TPOT.
    assert made.tpot[0].count == 3


def test_bounds_exist_from_59_and_299_requests_on() -> None:
    assert ranks(58, 0.95)[1] is None and ranks(59, 0.95)[1] == 59
    assert ranks(298, 0.99)[1] is None and ranks(299, 0.99)[1] == 299
    assert quantile([1.0] * 58, 0.95).status == "too few" and quantile([1.0] * 59, 0.95).status == "measured"
    assert quantile([], 0.5).status == "not measured"
    assert ranks(4, 0.5) == (None, None) and ranks(5, 0.5) == (1, 5)


@pytest.mark.parametrize(("count", "share"), [(20, 0.5), (100, 0.95), (400, 0.99)])
def test_percentile_bounds_cover(count: int, share: float) -> None:
    """Each bound holds in at least 95 % of samples, and not in nearly all."""
    draw = random.Random(count)
    truth = -math.log(1 - share)
    above = below = 0
    for _ in range(600):
        made = quantile([draw.expovariate(1) for _ in range(count)], share)
        assert made.low is not None and made.high is not None
        above += made.high >= truth
        below += made.low <= truth
    # Three standard errors.
    assert above / 600 > 0.95 - 0.027 and below / 600 > 0.95 - 0.027
    assert above < 600 or below < 600


def test_ratios_of_blocks() -> None:
    made = ratio_of([(1.0, 0.5), (2.0, 1.0), (4.0, 2.0)])
    assert made.value == pytest.approx(0.5) and made.low == pytest.approx(0.5) and made.count == 3
    assert ratio_of([(1.0, 2.0)]).status == "too few"
    assert ratio_of([(1.0, math.inf), (0.0, 1.0), (math.nan, 1.0)]).status == ratio_of([]).status == "not measured"
    wide = ratio_of([(1.0, 1.0), (1.0, 4.0)])
    assert wide.low is not None and wide.high is not None and wide.low < 1 < wide.high


def test_arrivals_have_the_rate_and_the_burstiness() -> None:
    even = arrivals(10, 2000, 1.0, "a")
    assert even[0] == 0 and even[-1] == pytest.approx(199.9) and even == sorted(even)
    gaps = [after - before for before, after in itertools.pairwise(even)]
    middle = sum(gaps) / len(gaps)
    spread = sum((gap - middle) ** 2 for gap in gaps) / len(gaps) / middle**2
    assert spread == pytest.approx(1.0, abs=0.15)
    assert arrivals(10, 5, 1.0, "a") == arrivals(10, 5, 1.0, "a") and arrivals(3, 1, 1.0, "a") == [0.0]


def probe_of(limit: float, rates: list[float], start: float) -> Bracket:
    bracket = Bracket(start)
    while (rate := bracket.next_rate()) is not None:
        rates.append(rate)
        bracket.add(Probe(rate, rate <= limit, "", 10, 0.0))
    return bracket


@pytest.mark.parametrize("limit", [0.9, 5.0, 64.3])
def test_the_search_comes_within_a_tenth(limit: float) -> None:
    rates: list[float] = []
    found = probe_of(limit, rates, 4.0).found
    assert found.status == "found" and found.holds is not None
    assert found.holds <= limit <= 1.1 * found.holds and len(rates) < 16


def test_an_slo_that_is_never_met_or_never_broken() -> None:
    assert probe_of(0.0, [], 4.0).found.status == "never met"
    never = probe_of(math.inf, [], 4.0).found
    assert never.status == "never broken" and never.rate == 4.0 * 2**7


def test_the_verdict_on_a_rate() -> None:
    slo = Slo(ttft=200, tpot=50)
    held = judge(5.0, Volley(tuple(shot(0.1) for _ in range(40)), 8.0, 0.1), slo)
    assert held.holds and held.goodput == 5.0
    # 3 of 40 are more than 5 %.
    slow = tuple(shot(0.1) for _ in range(37)) + tuple(shot(0.3) for _ in range(3))
    assert judge(5.0, Volley(slow, 8.0, 0.1), slo).why == "TTFT 300 ms"
    one_failed = (*tuple(shot(0.1) for _ in range(39)), shot(0.1, error="status 429"))
    assert "1 of 40 requests failed" in judge(5.0, Volley(one_failed, 8.0, 0.1), slo).why
    asked = hopeless(slo, 40)
    assert not asked(slow[36:39]) and asked(slow[36:])


def serial(seconds: float, answers: Callable[[], bool] = lambda: True) -> Callable[..., Any]:
    """In place of ``open_loop``: a server of one slot that takes ``seconds`` for each, in a time that is made up."""

    async def play(gun: Gun, jobs: list[Job], times: list[float], *_: Any, hopeless: Any) -> Volley:
        shots: list[Shot] = []
        free = 0.0
        for due in times:
            free = max(free, due) + seconds
            shots.append(shot(free - due, 0.0, 1, None if answers() else "reset"))
            if hopeless(shots):
                return Volley(tuple(shots), free, 0.0, "the SLO was broken")
        return Volley(tuple(shots), free, 0.0)

    return play


def searched(slo: Slo, monkeypatch: pytest.MonkeyPatch, player: Callable[..., Any], url: str = "http://a:1") -> Session:
    monkeypatch.setattr(session, "open_loop", player)
    config = ServerConfig(slo=slo, blocks=1, timeout=1.0)

    async def search(gun: Gun) -> Session:
        made = Session(config, [gun], load_workload(config, "r"), warm=[Warm(3, True, (0.02 / config.tokens,), True)])
        try:
            await made._search(slo, Budget(time.perf_counter() + 3600, {}))
        except Ended as ended:
            made.stopped = str(ended)
        return made

    return fire(url, search)


@pytest.mark.parametrize("slo", [Slo(ttft=1000), Slo(e2e=2000)])
def test_the_highest_load_is_no_more_than_the_server_can_do(monkeypatch: pytest.MonkeyPatch, slo: Slo) -> None:
    """A server of 50 requests a second. 60 requests at 84 a second wait at most half a second, for they are few. Within
    ten times the longest bound, a tenth more than the server can do just keeps it."""
    made = searched(slo, monkeypatch, serial(0.02)).capacity
    assert made is not None and made.status == ["found"]
    holds, fails = made.searches[0][0].holds, made.searches[0][0].fails
    assert holds is not None and fails is not None and holds < 55.6 and 45 < fails < 1.1 * holds
    assert probe_size(Slo(tpot=50), 100.0, 60) == 60 and probe_size(Slo(ttft=500, e2e=2000), 10.0, 60) == 200


def test_one_pattern_of_requests_for_all_rates_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gaps but for the rate, and the same lengths, on both servers, which take turns; no text twice. So the
    luck of a pattern, which moves the highest load by a quarter, hardly gets into the ratio. A server that is 1.25
    times as fast may also let more requests wait within the bound."""
    seen: dict[str, set[tuple[Any, ...]]] = {}
    texts: list[str | None] = []
    sides: list[str] = []
    speeds = {"http://a:1": 0.02, "http://b:1": 0.016}
    ratios = []

    async def play(gun: Gun, jobs: list[Job], times: list[float], name: str, *_: Any, hopeless: Any) -> Volley:
        side, block = name.split("-s")[1][0], name.split("-s")[1][1:].split("-")[0]
        sides.append(side)
        gaps = [each / times[-1] for each in times[:50]]
        if len(times) == 60:
            seen.setdefault(block, set()).add((*(round(each, 9) for each in gaps), *(job.tokens for job in jobs)))
        texts.extend(job.prompt for job in jobs)
        return await serial(speeds[gun.endpoint.url])(gun, jobs, times, hopeless=hopeless)

    monkeypatch.setattr(session, "open_loop", play)
    for seed in range(5):
        config = ServerConfig(slo=Slo(ttft=100), blocks=4, timeout=1.0, seed=seed)

        async def both(first: Gun, config: ServerConfig = config) -> Session:
            second = replace(first, endpoint=Endpoint("http://b:1"))
            warm = [Warm(3, True, (0.02 / config.tokens,), True)] * 2
            made = Session(config, [first, second], load_workload(config, f"r{config.seed}"), warm=warm)
            await made._search(config.slo, Budget(time.perf_counter() + 3600, {}))
            return made

        seen.clear()
        capacity = fire("http://a:1", both).capacity
        assert capacity is not None and capacity.ratio.value is not None
        ratios.append(capacity.ratio.value)
        assert len(seen) == config.blocks and all(len(each) == 1 for each in seen.values())
    assert len(set(texts)) == len(texts)
    assert all(1.25 < each < 1.55 for each in ratios) and max(ratios) < 1.15 * min(ratios), ratios
    # A rate of one after a rate of the other, A B B A.
    assert all(set(pair) == {"a", "b"} for pair in zip(sides[:10:2], sides[1:10:2], strict=True))
    assert sides[:4] in (["a", "b", "b", "a"], ["b", "a", "a", "b"])


def test_a_server_that_dies_in_the_search_stopped_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = searched(Slo(ttft=1000), monkeypatch, serial(0.02, lambda: False), f"http://127.0.0.1:{free_port()}")
    assert gone.stopped == "the endpoint stopped answering (refused)"
    assert gone.capacity is not None and gone.capacity.status == ["not measured"]
    with scripted(lambda *_: answer(16, ttft=0.01, tpot=0)) as server:
        slow = searched(Slo(ttft=1000), monkeypatch, serial(0.02, lambda: False), server.url)
    assert slow.stopped == "" and slow.capacity is not None and slow.capacity.status == ["never met"]


def test_a_bound_of_tpot_is_not_kept_where_tokens_are_not_known() -> None:
    made = [replace(each, answer=replace(each.answer, usage=None)) for each in (shot(0.1) for _ in range(40))]
    slo = Slo(tpot=50)
    assert judge(5.0, Volley(tuple(made), 8.0, 0.1), slo).why == "TPOT not known: the server does not count tokens"
    assert hopeless(slo, 40)(made) and judge(5.0, Volley(tuple(made), 8.0, 0.1), Slo(ttft=200)).holds
    assert measured(Load("open", rate=5), [Volley(tuple(made), 8.0, 0.1)], slo).goodput == 0
    # Those that end at their limit are as long as asked.
    whole = [replace(each, answer=replace(each.answer, finish_reason="length")) for each in made]
    assert judge(5.0, Volley(tuple(whole), 8.0, 0.1), slo).holds


def test_blocks_that_were_not_searched_to_the_end_count_only_alone() -> None:
    a = Search("found", 4.0, ()), Search("time was up", 1.0, ())
    b = Search("found", 8.0, ()), Search("found", 9.0, ())
    made = Capacity(Slo(ttft=500), (a, b))
    assert made.rates == [pytest.approx(4.0), pytest.approx(72**0.5)]
    assert made.ratio.value == pytest.approx(2.0) and made.ratio.count == 1
    assert Capacity(Slo(ttft=500), (a[1:], b)).rates[0] == pytest.approx(1.0)
    assert Capacity(Slo(ttft=500), (a[1:], b)).ratio.value is None


def test_a_warm_up_is_steady_when_three_medians_agree() -> None:
    assert not is_steady([1.0, 1.0]) and is_steady([9.0, 1.0, 1.04, 1.02]) and not is_steady([1.0, 1.0, 1.2])


def test_made_up_texts_are_unique_and_of_one_length_for_both() -> None:
    workload = load_workload(ServerConfig(prompt=40), "run")
    a, b = ([*workload.take("x", side, 20)] for side in (0, 1))
    texts = [job.prompt for job in a + b]
    assert len(set(texts)) == 40 and len({(text or "")[:6] for text in texts}) == 40
    assert [(job.prompt_tokens, job.tokens) for job in a] == [(job.prompt_tokens, job.tokens) for job in b]
    assert len({job.prompt_tokens for job in a}) > 3
    again = load_workload(ServerConfig(prompt=40), "other run")
    assert not {job.prompt for job in again.take("x", 0, 20)} & set(texts)
    assert "synthetic" in again.label


BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,472,18,490,x\n45,GPT-4,10,0,10,x\n"
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,1,8\n"
)
MOONCAKE = '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46]}\nnot json\n'
LOG = (
    '{"id": "a", "ts": 10.5, "prompt": "hello there", "n_in": 2, "n_out": 7}\n{"ts": 1}\n'
    '{"timestamp": "2026-01-01T00:00:00Z", "gen_ai.usage.input_tokens": 4, "gen_ai.usage.output_tokens": 5}\n'
)


@pytest.mark.parametrize(
    ("name", "text", "format", "jobs", "bad"),
    [
        ("b.csv", BURST, "BurstGPT CSV", [(472, 18)], 1),
        ("a.csv", AZURE, "Azure CSV", [(4808, 10), (1, 8)], 0),
        ("m.jsonl", MOONCAKE, "Mooncake or Bailian JSONL", [(6955, 52)], 1),
        ("l.jsonl", LOG, "request log", [(2, 7), (4, 5)], 1),
    ],
)
def test_traces(tmp_path: Path, name: str, text: str, format: str, jobs: list[tuple[int, int]], bad: int) -> None:
    (tmp_path / name).write_text(text)
    made = load_workload(ServerConfig(trace=tmp_path / name), "r")
    assert made.format == format and made.bad == bad and made.kind == "trace"
    assert [(job.prompt_tokens, job.tokens) for job in made.jobs] == jobs


@pytest.mark.parametrize(
    "times",
    [
        ("2026-01-01T02:00:00.5+02:00", "2026-01-01T00:00:02Z"),
        ("2026-01-01T00:00:00.5000000Z", "2026-01-01T00:00:02.000000000+00:00"),
        ("2026-01-01 00:00:00.5", "2026-01-01T00:00:02"),
        (1767225600500, 1767225602000),
        (1767225600.5, 1767225602),
        (0.5, 2),
    ],
)
def test_times_of_request_logs(tmp_path: Path, times: tuple[Any, Any]) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text("".join(json.dumps({"ts": each, "n_in": 3, "n_out": 4}) + "\n" for each in times))
    made = load_workload(ServerConfig(trace=path), "r")
    first, second = (job.at for job in made.jobs)
    assert made.bad == 0 and first is not None and second == pytest.approx(first + 1.5)


def test_files_without_requests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n[]\n{"prompt": ""}\n')
    with pytest.raises(PrunekitError, match=r"No line of .* is a request"):
        load_workload(ServerConfig(prompts=path), "r")
    path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(PrunekitError, match="names no columns of a trace"):
        load_workload(ServerConfig(trace=path), "r")


def test_prompts_of_a_file_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path.write_text(json.dumps({"prompt": "one"}) + "\n" + json.dumps({"messages": messages, "max_tokens": 9}) + "\n")
    made: Workload = load_workload(ServerConfig(prompts=path, tokens=3), "r")
    assert {job.prompt for job in made.jobs} == {"one", None}
    assert made.jobs[1].messages == (messages[0],) and made.jobs[1].tokens == 9
    assert len([*made.take("x", 0, 5)]) == 5 and made.repeated == 3 and made.sent == 5


def test_what_a_file_needs_of_a_server(tmp_path: Path) -> None:
    """The longest request decides the context; a warm-up sends none of a trace's texts; each server's texts count."""
    path = tmp_path / "l.jsonl"
    chat = {"messages": [{"role": "user", "content": "my words"}], "ts": 2, "n_in": 9000, "n_out": 500}
    path.write_text(json.dumps({"prompt": "my text", "ts": 1, "n_in": 3, "n_out": 4}) + "\n" + json.dumps(chat) + "\n")
    made = load_workload(ServerConfig(trace=path), "r")
    assert made.longest == 9500 and load_workload(ServerConfig(prompt=10, tokens=5), "r").longest == 40 + 64
    first, second = made.take("first", 0, 2, warm=True)
    assert first.messages is None and first.prompt and "my text" not in first.prompt and not made.repeated
    assert second.messages is not None and "my words" not in second.messages[0]["content"] and second.prompt is None
    for side in (0, 1):
        assert [job.prompt for job in made.take("x", side, 2)] == ["my text", None] and not made.repeated
    assert [*made.take("y", 1, 1)] and made.repeated == 1


@pytest.mark.parametrize("loads", [{"concurrency": (2, 2)}, {"rates": (1.0, 3.0, 1.0)}])
def test_loads_with_one_name_are_refused(loads: dict[str, Any]) -> None:
    with pytest.raises(PrunekitError, match="Two loads have the same"):
        ServerConfig(**loads)
    assert ServerConfig(rates=(10.01, 10.02)) and Load("open", rate=10.02).name == "open loop, 10.02 requests/s"


@pytest.mark.parametrize("text", ["", "ttft", "ttft=0", "ttft=nan", "x=3", "ttft=1,ttft=2", "tpot=1e99"])
def test_slos_that_are_none(text: str) -> None:
    with pytest.raises(PrunekitError, match="is no SLO"):
        parse_slo(text)


def load_test(url: str, baseline: str | None = None, **settings: Any) -> ServerReport:
    usual: dict[str, Any] = {"requests": 6, "blocks": 2, "concurrency": (1,), "tokens": 3, "warmup": 9}
    config = ServerConfig(**{**usual, "natural_tokens": 4, "max_minutes": 0.5, "timeout": 1.0, **settings})
    return bench_server(url, baseline=baseline, config=config)


def paced(ttft: float, longer: int = 0) -> Callable[[dict[str, Any], int], Script]:
    """Answers as long as asked where that is asked for, else ``longer`` than three tokens."""

    def script(body: dict[str, Any], number: int) -> Script:
        tokens = body["max_tokens"] if body.get("ignore_eos") else min(body["max_tokens"], 3 + longer)
        return answer(tokens, ttft=ttft, tpot=ttft / 4, finish="length" if tokens == body["max_tokens"] else "stop")

    return script


def test_two_servers_in_turns(tmp_path: Path) -> None:
    with scripted(paced(0.08)) as dense, scripted(paced(0.02, longer=1)) as pruned:
        made = load_test(pruned.url, dense.url, slo=Slo(ttft=1000))
        # A B B A: all of a block to one server.
        assert dense.seen and pruned.seen
    names = [each.results[0].load.kind for each in made.loads]
    assert names == ["closed", "open", "natural"] and made.stopped == ""
    ratio = made.loads[0].ratios["ttft"].value
    assert ratio is not None and ratio < 0.9
    natural = made.loads[2]
    assert [each.tokens for each in natural.results] == [3, 4] and [each.truncated for each in natural.results] == [
        0,
        1,
    ]
    assert natural.ratios["tokens"].value == pytest.approx(4 / 3)
    assert made.capacity is not None and len(made.capacity.searches) == 2
    write_report(made, tmp_path / "serve.json")
    write_rows(made, tmp_path / "requests.jsonl")
    data = json.loads((tmp_path / "serve.json").read_text())
    assert data["format"] == "prunekit-server-bench" and data["served"]["baseline"]["label"].startswith("127.0.0.1:")
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + 3 * 2 * 6 and {"ttft", "lag", "error", "to"} <= rows[1].keys()
    assert not {"text", "prompt"} & rows[1].keys()


class Steady:
    """A counter that moves by 30 J a window."""

    method, scope = "a counter of the test's", "chip"

    def begin(self) -> None:
        """It counts by windows."""

    def end(self) -> float:
        return 30.0


def test_joules_of_the_windows_of_each_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joules, "meter", lambda local: Meter(Steady()))
    monkeypatch.setattr(run, "meter", lambda local: Meter(Steady()))
    monkeypatch.setattr(server_energy, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(server_energy, "IDLE_SECONDS", 20.0)
    monkeypatch.setattr(server_energy, "_IDLE_SHARE", 0.02)
    with scripted(paced(0.01)) as dense, scripted(paced(0.01)) as pruned:
        made = load_test(pruned.url, dense.url, energy=True, spread=0)
    closed = made.loads[0]
    # Two blocks of 30 J each, for six answers of three tokens.
    assert [each.per_request.value for each in closed.energy] == [pytest.approx(10), pytest.approx(10)]
    assert [each.per_token.value for each in closed.energy] == [pytest.approx(10 / 3), pytest.approx(10 / 3)]
    said = made.to_dict()["loads"][0]["energy"]["endpoint"]
    assert said["per_token"]["status"] == "measured" and said["method"] == "a counter of the test's, chip"
    # 30 J in half a second at rest, after the warm-up and before the first load.
    assert 30 < said["idle_watts"]["value"] < 120


def test_joules_of_a_server_elsewhere_are_not_measured() -> None:
    assert "another machine" in joules.meter([True, False]).why
    with scripted(paced(0.01)) as pruned:
        assert load_test(pruned.url).loads[0].energy == ()


def test_one_server_alone_replays_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"timestamp": 1000 + 100 * each, "input_length": 5, "output_length": 2 + each} for each in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with scripted(paced(0.01)) as server:
        made = load_test(server.url, trace=path, speed=2.0)
        sent = [body["max_tokens"] for body in server.seen[-4:]]
    assert [each.results[0].load.kind for each in made.loads] == ["trace"] and not made.loads[0].ratios
    assert sent == [2, 3, 4, 5] and made.workload["format"].startswith("Mooncake")


def test_a_part_of_a_trace_is_told(tmp_path: Path) -> None:
    """The first by their times, whatever their order in the file."""
    path = tmp_path / "t.jsonl"
    rows = [{"timestamp": 1000 - 100 * each, "input_length": 5, "output_length": 2 + each} for each in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with scripted(paced(0.01)) as server:
        made = load_test(server.url, trace=path, speed=9.0, requests=4)
        sent = [body["max_tokens"] for body in server.seen[-4:]]
    assert sent == [10, 9, 8, 7] and made.workload["requests_in_file"] == 9
    assert any("The first 4 of the trace's 9 requests were replayed" in note for note in made.notes)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (Script(((0, b"{}"),), status=500), "status 500"),
        (Script((), stall=30), "no first token within 0.3 s"),
        (Script(((0, b": ping\n\n"),), reset=True), "reset"),
    ],
)
def test_a_server_that_never_answers_ends_the_run(script: Script, said: str) -> None:
    begin = time.perf_counter()
    with scripted(lambda *_: script) as server, pytest.raises(PrunekitError, match="answered none of the first 3") as e:
        load_test(server.url, timeout=0.3)
    assert said in str(e.value) and time.perf_counter() - begin < 30


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("/home/anna/models/small.gguf", "small.gguf"),
        ("C:\\models\\small\\", "small"),
        ("~/m/x", "x"),
        ("Qwen/Q3", "Qwen/Q3"),
    ],
)
def test_a_model_that_is_named_by_its_path_is_stored_without_its_folders(name: str, kept: str) -> None:
    assert shown_model(name) == kept


def test_a_dead_port_ends_the_run() -> None:
    with pytest.raises(PrunekitError, match="does not answer"):
        load_test(f"http://127.0.0.1:{free_port()}")


def test_a_server_that_dies_meanwhile_leaves_what_was_measured() -> None:
    def script(body: dict[str, Any], number: int) -> Script:
        if number >= 18:
            return Script(((0, b": ping\n\n"),), reset=True)
        return answer(body["max_tokens"], ttft=0.005, tpot=0)

    with scripted(script) as server:
        made = load_test(server.url, concurrency=(1, 2, 3, 4), requests=10)
    assert "the endpoint stopped answering" in made.stopped and made.loads
    assert json.dumps(made.to_dict(), allow_nan=False)


def test_a_server_that_refuses_exact_lengths_is_asked_without() -> None:
    def script(body: dict[str, Any], number: int) -> Script:
        return Script(status=400) if "ignore_eos" in body else answer(2, ttft=0.005, tpot=0.001, finish="stop")

    with scripted(script) as server:
        made = load_test(server.url, tokens=8, natural_tokens=0)
    assert not made.served[0].exact and any("ignore_eos" in note for note in made.notes)
    assert any("as long as asked" in note for note in made.loads[0].results[0].notes)


def test_a_server_without_counts_tells_lengths_by_how_answers_ended() -> None:
    def script(body: dict[str, Any], number: int) -> Script:
        made = answer(body["max_tokens"], ttft=0.005, tpot=0.002, finish="length" if body.get("ignore_eos") else "stop")
        return Script((*made.pieces[:-2], made.pieces[-1]))

    with scripted(script) as server:
        made = load_test(server.url)
    closed_loop, natural = made.loads[0].results[0], made.loads[-1].results[0]
    assert closed_loop.tokens is not None and closed_loop.tpot[0].count and closed_loop.length_ratio == 1.0
    assert "does not count tokens" in closed_loop.notes[0]
    assert natural.tokens is None and natural.characters and natural.load.kind == "natural"


def test_money_at_the_highest_load_within_the_slo() -> None:
    slo, machine = Slo(ttft=100), {}
    found = [Search("found", rate, ()) for rate in (2.0, 4.0)]
    result = measured(Load("closed", 1), [Volley((shot(0.1, tokens=5),), 1.0, 0.1)])
    served = (Served("a", "remote", None), Served("b", "remote", None))
    capacity = Capacity(slo, ((found[0],), (found[1],)))
    report = ServerReport(served, (Compared((result, result), {}),), capacity, ServerConfig(), {}, machine)
    made = money(report, Prices(dollars_per_hour=3.6, utilisation=1.0, dollars_per_rework=1.0))
    # 3.6 $ an hour are 0.001 $ a second: 2 and 4 requests of 5 tokens.
    assert [each[0].per_request.value for each in made.costs] == [pytest.approx(0.0005), pytest.approx(0.00025)]
    assert [each[0].per_million_tokens.value for each in made.costs] == [pytest.approx(100), pytest.approx(50)]
    assert made.allowed_rework is not None and made.allowed_rework.value == pytest.approx(0.025)
    never = replace(report, capacity=Capacity(slo, ((found[0],), (Search("never broken", 4.0, ()),))))
    allowed = money(never, Prices(dollars_per_hour=3.6, dollars_per_rework=1.0)).allowed_rework
    assert allowed is not None and allowed.value is None and "of the endpoint was never broken" in allowed.how
    late = Search("found", 4.0, (Probe(4.0, True, "", 60, 4.0, void=True),))
    assert report.believed and not replace(report, capacity=Capacity(slo, ((found[0],), (late,)))).believed
    bare = ServerReport(served, report.loads, None, ServerConfig(), {}, machine)
    assert money(bare, Prices(dollars_per_hour=3.6)).costs[0][0].per_request.status == "not measured"
    assert json.dumps(made.to_dict(report.names), allow_nan=False)
