"""What a server tells of itself: its models, and the counters of its prefix cache."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.utils.endpoints.answer import Limits
from prunekit.utils.endpoints.endpoint import Endpoint
from prunekit.utils.endpoints.watchdog import Watchdog
from prunekit.utils.names import printable, sentence

if TYPE_CHECKING:
    import httpx

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
# Queries and hits in tokens, as servers name them.
_CACHES = (
    ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
    ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits"),
    ("vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_hits_total"),
)
_PAGE_BYTES = 1 << 23
_PATIENCE = Limits(connect=5, total=10)


@dataclass(frozen=True)
class CacheCounters:
    """Prompt tokens that were looked up in the prefix cache and found there. None: not told."""

    queries: float | None = None
    hits: float | None = None


async def get(client: httpx.AsyncClient, url: str, limits: Limits = _PATIENCE) -> tuple[int | None, bytes, str]:
    """Status (None: there was no answer), body of at most 8 MiB, and why there was none."""
    import httpx

    try:
        async with Watchdog(limits.total) as watchdog:
            timeout = httpx.Timeout(None, connect=limits.connect)
            async with client.stream("GET", url, timeout=timeout) as response:
                pieces, size = [], 0
                async for piece in response.aiter_raw():
                    size += len(piece)
                    if size > _PAGE_BYTES:
                        return None, b"", f"it sends more than {_PAGE_BYTES >> 20} MiB"
                    pieces.append(piece)
                return response.status_code, b"".join(pieces), ""
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        return None, b"", sentence(str(error)) or type(error).__name__
    return None, b"", f"no answer within {limits.total:g} s" if watchdog.expired else "no answer"


async def models(client: httpx.AsyncClient, endpoint: Endpoint) -> list[str]:
    """The ids of ``/v1/models``; empty where the server has no such list. Raises PrunekitError where it can't be
    reached, or refuses the key."""
    status, data, why = await get(client, endpoint.base + "/models")
    if status is None:
        raise PrunekitError(
            f"The server {printable(endpoint.url)} does not answer ({why}); check that it runs and that the address "
            "is right."
        )
    if status in (401, 403):
        raise PrunekitError(
            f"The server {printable(endpoint.url)} refuses the API key (status {status}); name the environment "
            "variable that holds the right one with --api-key-env."
        )
    try:
        listed: Any = json.loads(data)["data"] if status == 200 else []
        return [each["id"][:200] for each in listed if isinstance(each["id"], str)][:1000]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


async def with_model(client: httpx.AsyncClient, endpoint: Endpoint) -> Endpoint:
    """``endpoint`` with the model it is asked for: the one that was named, else the first that the server lists.

    Raises PrunekitError where the server can't be reached, or lists others than the one named."""
    listed = await models(client, endpoint)
    if endpoint.model is None:
        return replace(endpoint, model=listed[0]) if listed else endpoint
    if listed and endpoint.model not in listed:
        names = ", ".join(printable(each) for each in listed[:5])
        raise PrunekitError(
            f"The server {printable(endpoint.url)} has no model {printable(endpoint.model)!r}; it lists {names}."
        )
    return endpoint


def check_two(first: Endpoint, second: Endpoint) -> None:
    """Raises PrunekitError where both are one model of one server, which would be compared with itself."""
    if first.place == second.place and first.model == second.model:
        raise PrunekitError(
            f"The smaller model and the baseline are both {printable(first.model or 'the model')!r} of "
            f"{printable(first.url)}; give two addresses, or name two models of the server."
        )


def read_samples(text: str) -> dict[str, float]:
    """The samples of a page in Prometheus' text format, added up over labels; lines that are none are left out."""
    made: dict[str, float] = {}
    for line in text.splitlines():
        found = None if line.startswith("#") or len(line) > 10_000 else _SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found[2])
        except ValueError:
            continue
        if math.isfinite(value):
            made[found[1]] = made.get(found[1], 0.0) + value
    return made


async def cache_counters(client: httpx.AsyncClient, endpoint: Endpoint) -> CacheCounters:
    """The prefix cache's counters in ``/metrics``; empty where the server has none."""
    status, data, _ = await get(client, endpoint.root + "/metrics")
    samples = read_samples(data.decode("utf-8", "replace")) if status == 200 else {}
    for queries, hits in _CACHES:
        if queries in samples and hits in samples:
            return CacheCounters(samples[queries], samples[hits])
    return CacheCounters()
