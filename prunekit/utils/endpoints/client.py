"""One request to a server: streamed or whole. Whatever the server does becomes an answer, never an exception."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunekit.utils.endpoints.answer import ANOTHER_MODEL, Answer, Limits
from prunekit.utils.endpoints.chunks import Received, said_in
from prunekit.utils.endpoints.connections import NO_FILES, is_no_files
from prunekit.utils.endpoints.endpoint import Ask, Endpoint, body, target
from prunekit.utils.endpoints.naming import is_model_asked, shown_model
from prunekit.utils.endpoints.sse import EventParser
from prunekit.utils.endpoints.watchdog import Watchdog
from prunekit.utils.names import sentence

if TYPE_CHECKING:
    import httpx

_DEFAULT = Limits()
# Of an answer that is an error, what is read to tell what it says.
_ERROR_BYTES = 1 << 16
_REST = 1.0
_RETRIED = (429, 503)
# How many models LiteLLM's proxy asked in vain before the one that answered.
_FALLBACKS = "x-litellm-attempted-fallbacks"
_LONGEST_WAIT = 30.0


@asynccontextmanager
async def opened(endpoint: Endpoint, *, connections: int = 256) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``endpoint`` that keeps connections alive. Redirects are not followed, and a proxy of the environment
    is not used for the loopback interface."""
    import httpx

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30)
    async with httpx.AsyncClient(
        headers=endpoint.sent_headers(),
        limits=limits,
        timeout=None,
        follow_redirects=False,
        trust_env=not endpoint.is_local,
    ) as client:
        yield client


async def stream(client: httpx.AsyncClient, endpoint: Endpoint, ask: Ask, limits: Limits = _DEFAULT) -> Answer:
    """The answer to ``ask``, token by token as the server sends it."""
    return await _ask(client, endpoint, ask, limits, streamed=True)


async def complete(
    client: httpx.AsyncClient, endpoint: Endpoint, ask: Ask, limits: Limits = _DEFAULT, *, retries: int = 4
) -> Answer:
    """The answer to ``ask`` in one piece. A server that answers 429 or 503 is asked again, up to ``retries`` times,
    after as many seconds as it says in ``retry-after``, else after 0.5, 1, 2, … seconds; at most 30 each."""
    for tries in range(1, retries + 2):
        answer = replace(await _ask(client, endpoint, ask, limits, streamed=False), tries=tries)
        if answer.status not in _RETRIED or tries > retries:
            break
        wait = _seconds_of(answer.detail) or 0.5 * 2 ** (tries - 1) * random.uniform(0.8, 1.2)
        await asyncio.sleep(min(_LONGEST_WAIT, wait))
    return answer


async def _ask(client: httpx.AsyncClient, endpoint: Endpoint, ask: Ask, limits: Limits, *, streamed: bool) -> Answer:
    received = Received()
    data = json.dumps(body(endpoint, ask, stream=streamed)).encode("utf-8", "replace")
    headers = {"content-type": "application/json", "accept": "text/event-stream" if streamed else "application/json"}
    if ask.id:
        headers["x-request-id"] = _uuid(ask.id)
    url, _ = target(endpoint, ask)
    sent = time.perf_counter()
    error, detail, status = await _caught(client, url, data, headers, limits, received, sent, streamed)
    ended = time.perf_counter()
    if error is None and _is_another(endpoint.model, received):
        error = ANOTHER_MODEL
        detail = (
            f"{shown_model(received.model or 'a fallback')} in place of {shown_model(endpoint.model or 'the model')}"
        )
    if streamed and error is None and received.last_chunk is not None:
        # Counts and [DONE] may come later than the last chunk of the answer.
        ended = received.last_chunk
    return Answer(
        ask.id,
        sent,
        ended,
        error,
        detail,
        received.first,
        tuple(received.times),
        "".join(received.texts),
        "".join(received.reasonings),
        received.finish_reason,
        received.usage,
        status,
        received.model,
        first_text=received.first_text,
    )


def _is_another(asked: str | None, received: Received) -> bool:
    """Whether the answer is another model's than the one ``asked`` for. Of two names of which one is not told, nobody
    knows whether they are one."""
    return received.fallback or bool(asked and received.model and not is_model_asked(asked, received.model))


async def _caught(
    client: httpx.AsyncClient,
    url: str,
    data: bytes,
    headers: dict[str, str],
    limits: Limits,
    received: Received,
    sent: float,
    streamed: bool,
) -> tuple[str | None, str, int | None]:
    """Kind of the error (None: there is none), what more is said of it, and the status."""
    import httpx

    status: list[int] = []
    begun = False
    watchdog = Watchdog(min(limits.first if streamed else limits.total, limits.total))
    try:
        async with watchdog:
            timeout = httpx.Timeout(None, connect=limits.connect)
            async with client.stream("POST", url, content=data, headers=headers, timeout=timeout) as response:
                begun = True
                status.append(response.status_code)
                received.fallback = response.headers.get(_FALLBACKS, "0") not in ("", "0")
                if response.status_code != 200:
                    return f"status {response.status_code}", await _told(response), response.status_code
                if streamed:
                    error = await _events(response, received, watchdog, limits, sent)
                else:
                    error = await _whole(response, received, limits)
                return (*error, response.status_code)
    except httpx.ConnectTimeout:
        return "unreachable", f"not connected within {limits.connect:g} s", None
    except httpx.ConnectError as failed:
        return _not_connected(failed), sentence(str(failed)), None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as failed:
        if received.done:
            return None, "", status[0]
        if isinstance(failed, UnicodeError) and not status:
            # A host's name that no name server could be asked for.
            return "unreachable", sentence(str(failed)), None
        odd = isinstance(failed, httpx.LocalProtocolError | httpx.DecodingError)
        return (
            "malformed" if odd else "reset",
            sentence(str(failed)) or type(failed).__name__,
            status[0] if status else None,
        )
    if watchdog.expired and not received.done:
        if time.perf_counter() - sent >= limits.total:
            return "too long", f"not done within {limits.total:g} s", status[0] if status else None
        waited = limits.gap if received.first is not None else limits.first
        what = "no further token" if received.first is not None else "no first token" if begun else "no answer"
        return "stalled", f"{what} within {waited:g} s", status[0] if status else None
    return _judged(received, streamed), received.refusal or received.malformed, status[0] if status else None


async def _events(
    response: httpx.Response, received: Received, watchdog: Watchdog, limits: Limits, sent: float
) -> tuple[str | None, str]:
    parser = EventParser()
    size = 0
    async for piece in response.aiter_raw():
        now = time.perf_counter()
        size += len(piece)
        if size > limits.most_bytes:
            return "too large", f"more than {limits.most_bytes:,} bytes"
        try:
            events = parser.feed(piece)
        except ValueError as error:
            return "malformed", str(error)
        seen = len(received.times)
        for event in events:
            received.take(event, now)
        if received.refusal or received.malformed:
            break
        if received.done:
            # The end of the body, without which the connection can't be used again.
            watchdog.allow(_REST)
        # Comments and empty chunks are no sign of life.
        elif len(received.times) > seen:
            watchdog.allow(max(0.0, min(limits.gap, sent + limits.total - now)))
    else:
        now = time.perf_counter()
        for event in parser.close():
            received.take(event, now)
    return _judged(received, True), received.refusal or received.malformed


async def _whole(response: httpx.Response, received: Received, limits: Limits) -> tuple[str | None, str]:
    pieces, size = [], 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > limits.most_bytes:
            return "too large", f"more than {limits.most_bytes:,} bytes"
        pieces.append(piece)
    received.take(b"".join(pieces).decode("utf-8", "replace"), time.perf_counter())
    return _judged(received, False), received.refusal or received.malformed


def _judged(received: Received, streamed: bool) -> str | None:
    """The kind of error of an answer that came to its end; None where it is whole."""
    if received.refusal:
        return "server error"
    if received.malformed:
        return "malformed"
    if received.first_chunk is None:
        received.malformed = "the answer holds no choices"
        return "malformed"
    if streamed and not received.done and received.finish_reason is None:
        received.malformed = "the stream ended before the answer did"
        return "cut off"
    return None


async def _told(response: httpx.Response) -> str:
    """What an answer that is an error says, and after how many seconds to ask again."""
    pieces, size = [], 0
    async for piece in response.aiter_raw():
        pieces.append(piece)
        size += len(piece)
        if size > _ERROR_BYTES:
            break
    try:
        said = said_in(json.loads(b"".join(pieces)))
    except (ValueError, RecursionError):
        said = ""
    after = response.headers.get("retry-after", "")
    return f"retry after {after} s: {said}" if after.isdigit() and len(after) < 6 else said


def _uuid(name: str) -> str:
    """``name`` where it is a UUID, else one that is made of it: llama-cpp-python's server refuses other ids."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _seconds_of(detail: str) -> float | None:
    words = detail.split()
    return float(words[2]) if detail.startswith("retry after ") and words[2].isdigit() else None


def _not_connected(failed: Any) -> str:
    """``refused`` where nobody listens, ``unreachable`` where the machine can't be reached or found; of this process's
    own limit of open files :data:`NO_FILES`."""
    cause: BaseException | None = failed
    while cause is not None:
        if is_no_files(cause):
            return NO_FILES
        if isinstance(cause, ConnectionRefusedError):
            return "refused"
        cause = cause.__cause__ or cause.__context__
    refused = "refused" in str(failed).lower() or "all connection attempts failed" in str(failed).lower()
    return "refused" if refused else "unreachable"
