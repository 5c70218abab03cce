"""The dense model behind a server that tells log-probabilities of prompts (vLLM), asked for one text at a time."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.scoring.dense import DenseAway, Likeliest, reads_log
from prunekit.utils.endpoints.about import with_model
from prunekit.utils.endpoints.answer import Limits
from prunekit.utils.endpoints.client import opened
from prunekit.utils.endpoints.endpoint import Ask, Endpoint, body
from prunekit.utils.endpoints.watchdog import Watchdog
from prunekit.utils.names import printable, sentence
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import httpx

    from prunekit.monitoring.scoring.contexts import Context

# What vLLM gives unless it was started with another --max-logprobs.
_TOP = 20
# vLLM holds logits of a whole prompt, outside of the memory it has reserved: longer ones have ended servers.
MOST_TOKENS = 1024
_TRIES = 4
_MOST_ID = 1 << 31
_PATIENCE = Limits(connect=10, total=120)
# Of a server that did not answer the last time.
_IMPATIENCE = Limits(connect=2, total=10)
UNKNOWN = "server::"
"""How the identity of a server begins that has not told its model."""
_LOCALLY = "score with its checkpoint instead, which needs no server: name a folder or a hub id"


@dataclass
class Seen:
    """What a server was last seen to be: the ``name`` of its model (None: it has not told), and whether it was
    ``away``."""

    name: str | None = None
    away: bool = False


@dataclass(frozen=True)
class DenseServer:
    """The dense model at ``endpoint``; ``top`` is how many of the likeliest tokens are asked for."""

    endpoint: Endpoint
    top: int = _TOP
    seen: Seen = field(default_factory=lambda: Seen(), compare=False)

    @property
    def label(self) -> str:
        return f"{self.endpoint.model or 'the model'} at {self.endpoint.label}"

    @property
    def identity(self) -> str:
        """What can be known of the model without its weights: the name that the server has for it. It is asked for
        where it is not known yet; where it does not answer, that is :data:`UNKNOWN`."""
        if self.seen.name is None and not self.seen.away:
            try:
                self.ask_name()
            except PrunekitError:
                self.seen.away = True
        return f"server:{self.seen.name or ''}:top-{self.top}"

    def ask_name(self) -> None:
        """Ask the server for its model. Raises PrunekitError where it does not answer, or has not the one named."""

        async def asked() -> Endpoint:
            async with opened(self.endpoint, connections=1) as client:
                return await with_model(client, self.endpoint)

        self.seen.name = asyncio.run(asked()).model

    def read(self, contexts: Sequence[Context], name: str) -> dict[str, Likeliest]:
        """What the server says of each context. One request at a time, so that its users are not kept waiting.

        One that did not answer the last time is asked once, and for a short time, until it answers again: else each
        window of a log would wait for minutes. Raises :class:`~prunekit.monitoring.scoring.dense.DenseAway` where it
        can't be reached, gives no log-probabilities of prompts, or fails again and again.
        """
        try:
            made = asyncio.run(self._read(contexts, name))
        except PrunekitError as error:
            self.seen.away = True
            raise DenseAway(str(error)) from None
        self.seen.away = False
        return made

    async def _read(self, contexts: Sequence[Context], name: str) -> dict[str, Likeliest]:
        made = {}
        async with opened(self.endpoint, connections=1) as client:
            endpoint = await with_model(client, self.endpoint)
            self.seen.name = endpoint.model
            with progress(reads_log(name), len(contexts), tokens=sum(len(each.ids) for each in contexts)) as advance:
                for context in contexts:
                    made[context.id] = await self._of(client, endpoint, context)
                    advance(1)
        return made

    async def _of(self, client: httpx.AsyncClient, endpoint: Endpoint, context: Context) -> Likeliest:
        if len(context.ids) > MOST_TOKENS:
            raise PrunekitError(
                f"A server is asked for at most {MOST_TOKENS:,} tokens at a time, since longer prompts with "
                "log-probabilities can exhaust its memory; read fewer tokens of each prompt and answer."
            )
        # Cached prompts have no log-probabilities, so vLLM computes these anew.
        ask = Ask(prompt=context.ids, max_tokens=1, extra={"prompt_logprobs": self.top})
        tries, limits = (1, _IMPATIENCE) if self.seen.away else (_TRIES, _PATIENCE)
        said = await _asked(client, endpoint, body(endpoint, ask, stream=False), tries, limits)
        self.seen.away = False
        return likeliest(said, context.ids)


async def _asked(
    client: httpx.AsyncClient, endpoint: Endpoint, data: Mapping[str, Any], most: int, limits: Limits
) -> Any:
    """The JSON of an answer. A server that is busy or fails is asked again, after 1, 4 and 16 seconds."""
    why = ""
    for tries in range(most):
        status, content, why = await _post(client, endpoint.base + "/completions", data, limits)
        if status == 200:
            try:
                return json.loads(content)
            except (ValueError, RecursionError):
                raise _not_told("its answer is no JSON") from None
        # llama-cpp-python's server answers 500 to what it does not know.
        if status in (400, 404, 422) or (status == 500 and b"validation error" in content):
            raise _not_told(f"it refuses prompt_logprobs on /v1/completions (status {status}: {why})")
        if status is not None and status < 500 and status != 429:
            break
        if tries + 1 < most:
            await asyncio.sleep(_wait(tries))
    raise PrunekitError(
        f"The server of the dense model did not answer ({why}); try again when it is less busy, or {_LOCALLY}."
    )


def _wait(tries: int) -> float:
    return float(4**tries)


async def _post(
    client: httpx.AsyncClient, url: str, data: Mapping[str, Any], limits: Limits
) -> tuple[int | None, bytes, str]:
    """Status (None: there was no answer), the body, and what was wrong."""
    import httpx

    pieces, size = [], 0
    try:
        async with Watchdog(limits.total) as watchdog:
            timeout = httpx.Timeout(None, connect=limits.connect)
            async with client.stream("POST", url, json=dict(data), timeout=timeout) as response:
                async for piece in response.aiter_raw():
                    pieces.append(piece)
                    size += len(piece)
                    if size > limits.most_bytes:
                        return None, b"", f"it sends more than {limits.most_bytes:,} bytes"
                content = b"".join(pieces)
                told = sentence(content[:200].decode("utf-8", "replace")) if response.status_code != 200 else ""
                return response.status_code, content, told or f"status {response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        return None, b"", sentence(str(error)) or type(error).__name__
    return None, b"", f"no answer within {limits.total:g} s" if watchdog.expired else "no answer"


def likeliest(said: Any, ids: Sequence[int]) -> Likeliest:
    """The log-probabilities of all ``ids`` but the first in an answer of /v1/completions. Raises PrunekitError where it
    has none, or not those of these tokens."""
    import torch

    try:
        choice = said["choices"][0]
        told = choice.get("prompt_logprobs", said.get("prompt_logprobs"))
    except (TypeError, KeyError, IndexError, AttributeError):
        told = None
    if not isinstance(told, list) or not any(told):
        raise _not_told("its answer holds no prompt_logprobs")
    if len(told) != len(ids):
        raise _not_told(f"it read {len(told)} tokens where it was sent {len(ids)}")
    rows = [_row(entry, token) for entry, token in zip(told[1:], ids[1:], strict=True)]
    width = max(len(row) for row in rows)
    table = torch.full((len(rows), width), -1, dtype=torch.long)
    log_probs = torch.full((len(rows), width), -math.inf, dtype=torch.float64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = torch.tensor(list(row))
        log_probs[place, : len(row)] = torch.tensor(list(row.values()), dtype=torch.float64)
    own = torch.tensor([row[token] for row, token in zip(rows, ids[1:], strict=True)], dtype=torch.float64)
    first = table.gather(1, log_probs.argmax(-1, keepdim=True))[:, 0]
    return Likeliest(table, log_probs, own, first)


def _row(entry: Any, token: int) -> dict[int, float]:
    """Log-probabilities by token ids. A server writes -inf as a large number below zero."""
    try:
        row = {int(key): max(float(each["logprob"]), -1e4) for key, each in entry.items()}
        if (
            token not in row
            or not all(value <= 1e-3 for value in row.values())
            or not 0 <= min(row) <= max(row) < _MOST_ID
        ):
            raise ValueError
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        raise _not_told(f"its prompt_logprobs can't be read ({printable(str(entry)[:80])})") from None
    return row


def _not_told(why: str) -> PrunekitError:
    return PrunekitError(
        f"The server of the dense model gives no log-probabilities of prompts: {why}. vLLM gives them; llama.cpp and "
        f"transformers serve do not. For those, {_LOCALLY}."
    )
