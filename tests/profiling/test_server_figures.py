"""Figures of a load test that must not be told: of blocks that failed, and of a client that ran out of connections."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prunekit.profiling.loopback.serve import Identity, Server
from prunekit.profiling.server.config import ServerConfig
from prunekit.profiling.server.load import Gun, Volley, open_loop
from prunekit.profiling.server.measured import Load, measured
from prunekit.profiling.server.run import bench_server
from prunekit.profiling.server.session import Session
from prunekit.profiling.server.statistics import ratio_of
from prunekit.profiling.server.traces import load_workload
from prunekit.profiling.server.workload import Job
from prunekit.utils.endpoints.answer import Answer, Limits
from prunekit.utils.endpoints.client import opened, stream
from prunekit.utils.endpoints.connections import NO_FILES, connections
from prunekit.utils.endpoints.endpoint import Ask, Endpoint
from tests.support.scripted_server import answer, free_port, scripted
from tests.support.shots import shot

LIMITS = Limits(connect=2, first=5, gap=5, total=20)


def test_there_is_no_ratio_where_a_block_failed() -> None:
    """Two of four blocks failed: the other two say 0.5, but users of the endpoint waited for ever."""
    made = ratio_of([(2.0, 1.0), (2.0, math.inf), (2.0, 1.0), (2.0, math.inf)])
    assert (made.value, made.low, made.high) == (None, None, None) and made.status == "not measured"
    assert (made.failed, made.count) == (2, 4) and made.how.startswith("none: in 2 of 4 blocks")
    assert ratio_of([(2.0, 1.0)] * 4).value == pytest.approx(0.5)


def test_no_ratio_of_a_load_hides_the_blocks_that_failed() -> None:
    good = Volley(tuple(shot(0.1) for _ in range(6)), 3.0, 0.1)
    bad = Volley(tuple(shot(0.1, error="reset") for _ in range(6)), 3.0, 0.1)
    session = Session(ServerConfig(), [], load_workload(ServerConfig(), "r"))
    made = session._compared(Load("closed", 1), [[good] * 4, [good, bad, good, bad]]).ratios
    assert {name: (each.value, each.failed, each.count) for name, each in made.items()} == dict.fromkeys(
        ("ttft", "tpot", "e2e", "requests_per_second", "tokens_per_second", "tokens", "characters"), (None, 2, 4)
    )
    # A block that had no time for a request is none, and speaks neither for nor against.
    none = Volley((), 0.0, 0.0, "time was up")
    made = session._compared(Load("closed", 1), [[good] * 3, [good, good, none]]).ratios
    assert made["ttft"].value == pytest.approx(1.0) and made["ttft"].count == 2


def test_connections_stay_within_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, clients, most in ((1024, 2, 462), (1024, 1, 924), (256, 2, 78), (10, 2, 1), (1 << 20, 2, 2000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections(clients) == most
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert connections(2) == 2000


def test_requests_that_wait_for_a_connection_void_the_load() -> None:
    """Eight requests at once through two connections, to a server that answers all at once in 50 ms."""

    async def fire(url: str) -> Volley:
        endpoint = Endpoint(url, "scripted")
        async with opened(endpoint, connections=2) as client:
            gun = Gun(client, endpoint, LIMITS, connections=2)
            until = time.perf_counter() + 20
            return await open_loop(gun, [Job("a b", 2, 1)] * 8, [0.0] * 8, "t", until, True)

    with scripted(lambda *_: answer(1, ttft=0.05, tpot=0)) as server:
        volley = asyncio.run(fire(server.url))
    assert sum(each.is_starved for each in volley.shots) == 6
    made = measured(Load("open", rate=8), [volley])
    assert "no connection left for 6 requests" in made.void[0] and made.to_dict()["status"] == "void"


def test_a_client_without_open_files_is_no_failure_of_the_server() -> None:
    async def fire(url: str) -> tuple[Answer, Gun]:
        endpoint = Endpoint(url, "scripted")
        async with opened(endpoint) as client:
            gun = Gun(client, endpoint, LIMITS)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = os.open(os.devnull, os.O_RDONLY)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, hard))
                made = await stream(client, endpoint, Ask("a", max_tokens=1), LIMITS)
                for number in range(6):
                    await gun.fire(Job("a", 1, 1), f"{number}", None, True)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                os.close(taken)
            return made, gun

    made, gun = asyncio.run(fire(f"http://127.0.0.1:{free_port()}"))
    assert made.error == NO_FILES == "too many open files" and not gun.is_dead
    starved = measured(Load("closed", 1), [Volley((shot(0.1, error=NO_FILES), shot(0.1)), 1.0, 0.1)])
    assert starved.void and starved.failed == 1


def test_slots_are_passed_on_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    @contextmanager
    def served(model: str, **options: Any) -> Iterator[Server]:
        asked.append({"model": model, "slots": options["slots"]})
        slots = 1 if model == "alone" else options["slots"]
        identity = Identity("llama-server", "b1", (), model, "0" * 64, 2048, 1, slots)
        yield Server(urls[model], "scripted", identity, 1, Path("log"))

    monkeypatch.setattr("prunekit.profiling.loopback.served", served)
    config = ServerConfig(requests=4, blocks=2, concurrency=(1,), tokens=2, warmup=3, natural_tokens=0, rates=(50.0,))

    def answers(body: dict[str, Any], _: Any) -> Any:
        return answer(body["max_tokens"], ttft=0.002, tpot=0)

    with scripted(answers) as first, scripted(answers) as second:
        urls = {"dense": first.url, "pruned": second.url, "alone": second.url}
        alike = bench_server("pruned", baseline="dense", config=config, slots=3)
        unlike = bench_server("alone", baseline="dense", config=config, slots=3)
    assert asked[:2] == [{"model": "dense", "slots": 3}, {"model": "pruned", "slots": 3}]
    assert [each.identity and each.identity["slots"] for each in alike.served] == [3, 3]
    said = "The server of the endpoint (llama-server) answers 3 requests at a time (--slots); others wait in it."
    assert said in alike.notes and not any("not answer equally many" in each for each in alike.notes)
    assert any("answers one request at a time" in each for each in unlike.notes)
    assert any("not answer equally many" in each for each in unlike.notes)
