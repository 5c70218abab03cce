"""Load tests of servers, from Python and from the command line."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from prunekit.profiling.server.config import ServerConfig
from prunekit.profiling.server.joules import meter
from prunekit.profiling.server.load import Gun
from prunekit.profiling.server.measured import MOST_CACHED
from prunekit.profiling.server.money import length_notes
from prunekit.profiling.server.report import NAMES, Served, ServerReport
from prunekit.profiling.server.session import Session
from prunekit.profiling.server.traces import load_workload
from prunekit.profiling.server.workload import Workload
from prunekit.utils.endpoints.about import CacheCounters, cache_counters, check_two, with_model
from prunekit.utils.endpoints.answer import Limits
from prunekit.utils.endpoints.client import opened
from prunekit.utils.endpoints.connections import connections
from prunekit.utils.endpoints.endpoint import Api, Endpoint
from prunekit.utils.endpoints.naming import shown_model
from prunekit.utils.machine import cpu_name
from prunekit.utils.phases.telling import phases
from prunekit.utils.process.stopping import Stopped, undisturbed
from prunekit.utils.provenance import installed

_TOTAL = 5.0


@dataclass(frozen=True)
class Target:
    """An endpoint, with what is known of the server behind it."""

    endpoint: Endpoint
    identity: dict[str, Any] | None = None


def bench_server(
    endpoint: Endpoint | str,
    *,
    baseline: Endpoint | str | None = None,
    config: ServerConfig | None = None,
    server: str = "auto",
    threads: int | None = None,
    slots: int | None = None,
    api: Api = "completions",
    keep: Callable[[ServerReport], None] | None = None,
) -> ServerReport:
    """Load-test an OpenAI-compatible server, and its ``baseline`` beside it, as `prunekit bench-server` does.

    Each is an address (``http://...``), an :class:`~prunekit.utils.endpoints.endpoint.Endpoint`, or a model, which is
    served on the loopback interface while the test runs, by ``server`` (llama.cpp, transformers, vllm, or auto) on so
    many ``threads``, with ``slots`` requests at once (None: four in llama-server, else what the server takes). ``api``
    is what texts are sent to (an Endpoint says it itself). ``keep`` is given what was measured where Ctrl-C ends the
    test. Raises PrunekitError where a server can't be reached, or answers nothing at first.

    >>> report = bench_server("http://127.0.0.1:8001", baseline="http://127.0.0.1:8000")  # doctest: +SKIP
    >>> report.loads[0].ratios["tpot"].value  # doctest: +SKIP
    0.81
    """
    config = config or ServerConfig()
    named = [endpoint] if baseline is None else [baseline, endpoint]
    # Before any server is started.
    workload = load_workload(config, secrets.token_hex(6))
    with ExitStack() as stack:
        targets = [_target(each, stack, server, threads, slots, workload.longest, api) for each in named]
        return _tested(targets, workload, config, keep)


def _target(
    named: Endpoint | str,
    stack: ExitStack,
    server: str,
    threads: int | None,
    slots: int | None,
    longest: int,
    api: Api,
) -> Target:
    if isinstance(named, Endpoint):
        return Target(named)
    if named.startswith(("http://", "https://")):
        return Target(Endpoint(named, api=api))
    from prunekit.profiling.loopback import served

    made = stack.enter_context(
        served(named, kind=server, threads=threads, slots=slots, context=max(2048, longest + 64))
    )
    return Target(Endpoint(made.url, made.model, api=api), made.identity.to_dict())


def _tested(
    targets: list[Target],
    workload: Workload,
    config: ServerConfig,
    keep: Callable[[ServerReport], None] | None,
) -> ServerReport:
    counter = meter([each.endpoint.is_local for each in targets]) if config.energy else None
    session = Session(config, [], workload, meter=counter)
    with phases(*session.titles):
        try:
            before, after = asyncio.run(_session(session, targets, config))
        except (KeyboardInterrupt, Stopped):
            if keep is not None and session.loads:
                with undisturbed():
                    session.stopped = "it was stopped"
                    keep(_report(session, targets, [], []))
            raise
    return _report(session, targets, before, after)


async def _session(
    session: Session, targets: list[Target], config: ServerConfig
) -> tuple[list[CacheCounters], list[CacheCounters]]:
    limits = Limits(min(10.0, config.timeout), config.timeout, config.timeout, _TOTAL * config.timeout)
    async with AsyncExitStack() as stack:
        guns, most = [], connections(len(targets))
        for target in targets:
            client = await stack.enter_async_context(opened(target.endpoint, connections=most))
            guns.append(Gun(client, await with_model(client, target.endpoint), limits, connections=most))
        if len(guns) == 2:
            check_two(guns[1].endpoint, guns[0].endpoint)
        session.guns = guns
        before = [await cache_counters(gun.client, gun.endpoint) for gun in guns]
        await session.run()
        return before, [await cache_counters(gun.client, gun.endpoint) for gun in guns]


def _report(
    session: Session, targets: list[Target], before: list[CacheCounters], after: list[CacheCounters]
) -> ServerReport:
    served, notes = [], [*session.notes]
    workload = session.workload
    for side, (gun, target) in enumerate(zip(session.guns, targets, strict=True)):
        warm = session.warm[side] if side < len(session.warm) else None
        queries, hits = _moved(before[side], after[side]) if before and after else (None, None)
        name = "the baseline" if len(targets) == 2 and side == 0 else "the endpoint"
        if queries and hits is not None and hits > MOST_CACHED * queries:
            notes.append(
                f"The prefix cache of {name} held {hits / queries:.0%} of the prompts' tokens: times are too good."
            )
        if warm is not None and not warm.steady:
            notes.append(f"The warm-up of {name} did not become steady within {warm.requests} requests.")
        if warm is not None and not warm.exact:
            notes.append(f"The server of {name} does not take ignore_eos, so answers end where its model ends them.")
        served.append(
            Served(
                shown_model(gun.endpoint.model or "not told"),
                gun.endpoint.label,
                target.identity,
                0 if warm is None else warm.requests,
                warm is not None and warm.steady,
                () if warm is None else warm.medians,
                warm is None or warm.exact,
                queries,
                hits,
                gun.endpoint.api,
            )
        )
    notes += _slots(targets)
    if workload.repeated:
        notes.append(
            f"{workload.repeated:,} of {workload.sent:,} requests to a server sent a text of the file again, so a "
            "prefix cache may have helped: times may be too good. Give a file of at least "
            f"{workload.sent:,} texts, or turn the cache off."
        )
    if workload.bad:
        notes.append(f"{workload.bad:,} lines of the file were no requests and were left out.")
    if workload.kind == "trace" and session.config.requests < len(workload.jobs):
        notes.append(
            f"The first {session.config.requests:,} of the trace's {len(workload.jobs):,} requests were replayed; "
            "--requests says how many."
        )
    if workload.kind == "trace" and session.config.slo is not None and session.capacity is not None:
        notes.append("The search within the SLO sends the trace's requests at random times, not at the trace's own.")
    report = ServerReport(
        tuple(served),
        tuple(session.loads),
        session.capacity,
        session.config,
        _workload(workload),
        _machine(),
        tuple(notes),
        session.stopped,
        time.perf_counter() - session.began,
    )
    return replace(report, notes=(*report.notes, *length_notes(report), *_drift(report)))


def _drift(report: ServerReport) -> list[str]:
    found = report.drift
    if not found.is_shown or found.change is None:
        return []
    word, why = ("rose", "heat, or other programs") if found.change > 0 else ("fell", "a warm-up that was too short")
    return [
        f"The time of a token {word} by {abs(found.change):.0%} from the first to the last turn of a load "
        f"(p = {found.p:.2g}, {found.blocks} turns): {why}. Turns keep this out of ratios, but not out of times."
    ]


def _slots(targets: list[Target]) -> list[str]:
    """How many requests at a time the servers that prunekit started answer."""
    names = NAMES[-len(targets) :]
    told = {name: each.identity for name, each in zip(names, targets, strict=True) if each.identity is not None}
    notes = []
    for name, identity in told.items():
        slots = identity.get("slots")
        if slots is not None:
            several = f"{slots} requests" if slots > 1 else "one request"
            notes.append(
                f"The server of the {name} ({identity.get('server')}) answers {several} at a time (--slots); others "
                "wait in it."
            )
        elif identity.get("server") == "transformers serve":
            notes.append(f"The server of the {name} (transformers serve) answers one request at a time.")
    if len({identity.get("slots") or identity.get("server") for identity in told.values()}) > 1:
        notes.append(
            "The two servers do not answer equally many requests at a time, or are not of one kind: their ratio is not "
            "the model's alone. Serve both alike (--server, --slots)."
        )
    return notes


def _moved(before: CacheCounters, after: CacheCounters) -> tuple[float | None, float | None]:
    """By how much queries and hits went up; None where they are not told, or began anew."""
    if before.queries is None or after.queries is None or before.hits is None or after.hits is None:
        return None, None
    queries, hits = after.queries - before.queries, after.hits - before.hits
    return (queries, hits) if queries >= hits >= 0 else (None, None)


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "kind": workload.kind,
        "label": workload.label,
        "format": workload.format,
        "run_id": workload.run_id,
        "requests_in_file": len(workload.jobs) or None,
        "bad_lines": workload.bad,
        "sha256": workload.sha256 or None,
        "tokens_a_word": workload.tokens_a_word,
    }


def _machine() -> dict[str, Any]:
    """Of the client; servers may run elsewhere."""
    return {
        "cpu": cpu_name(),
        "logical_cpus": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "httpx": installed("httpx"),
        "prunekit": installed("prunekit"),
    }
