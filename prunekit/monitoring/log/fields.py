"""From a row of a log to a request: names and their aliases, and what each field may hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from prunekit.monitoring.log.request import OUTCOMES, Request
from prunekit.utils.moments import seconds_since_1970

# From 1990 to 2100: a time outside is a broken clock or another unit.
_FIRST, _LAST = 631_152_000.0, 4_102_444_800.0
_MOST_TOKENS = 1 << 31
_MOST_IDS = 1 << 20


class Wrong(Exception):
    """A field can't be used; the text is a kind of :mod:`~prunekit.monitoring.log.problems`."""


def request_of(row: dict[str, Any], line: bytes, tell: Callable[[str], None]) -> Request | None:
    """The request of a flat ``row``, whose bytes were ``line``; None where nothing in it tells of one. ``tell`` is
    given the kind of each problem; a field with one is left out."""
    found: dict[str, Any] = {}
    rank: dict[str, int] = {}
    _collect(row, found, rank, tell)
    for name, prefix in (("attributes", ""), ("usage", "usage.")):
        if isinstance(inner := row.get(name), dict):
            _collect({prefix + key: value for key, value in inner.items()}, found, rank, tell)
    if (error := found.pop("error", None)) is not None:
        found |= {"finish_reason": "error"} if error else {"answered": True}
    if "messages" in found and "prompt" not in found:
        found["prompt"] = "\n".join(text for _, text in found["messages"])
    for ids, number in (("prompt_ids", "n_in"), ("answer_ids", "n_out")):
        if number not in found and ids in found:
            found[number] = len(found[ids])
    if not found.keys() & _MAKES_A_REQUEST:
        return None
    if "id" not in found:
        found["id"] = "line-" + blake2b(line, digest_size=8).hexdigest()
    return Request(**found)


def _collect(row: dict[str, Any], found: dict[str, Any], rank: dict[str, int], tell: Callable[[str], None]) -> None:
    """Add the fields of ``row`` to those ``found``; of two names of one field the one listed first is taken."""
    for key, value in row.items():
        known = _NAMES.get(key)
        if known is None or value is None:
            continue
        field, convert, place = known
        if place >= rank.get(field, 1000):
            continue
        try:
            made = convert(value)
        except Wrong as error:
            tell(str(error))
            continue
        if made is not None:
            found[field], rank[field] = made, place


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong("wrong type")
    return value


def _name(value: Any) -> str | None:
    """A name, or a number that stands for one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _text(value)[:200] or None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong("wrong type")
    try:
        made = float(value)
    except OverflowError:
        raise Wrong("not finite") from None
    if not math.isfinite(made):
        raise Wrong("not finite")
    return made


def _within(value: Any, low: float, high: float) -> float:
    made = _number(value)
    if not low <= made <= high:
        raise Wrong("out of range")
    return made


def _count(value: Any) -> int:
    made = _within(value, 0, _MOST_TOKENS)
    if made != int(made):
        raise Wrong("wrong type")
    return int(made)


def _milliseconds(value: Any) -> float:
    return _within(value, 0, 1e10)


def _seconds(value: Any) -> float:
    return 1e3 * _within(value, 0, 1e7)


def _share(value: Any) -> float:
    return _within(value, 0, 1)


def _logprob(value: Any) -> float:
    return _within(value, -1e6, 1e-6)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("wrong type")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_IDS:
        raise Wrong("wrong type")
    if any(type(each) is not int for each in value):
        raise Wrong("wrong type")
    if value and not (min(value) >= 0 and max(value) < _MOST_TOKENS):
        raise Wrong("out of range")
    return tuple(value)


def _time(value: Any) -> float:
    """Seconds since 1970, from a number (seconds, or by its size milli-, micro- or nanoseconds) or ISO 8601."""
    try:
        made = seconds_since_1970(value if isinstance(value, str) else _number(value))
    except (ValueError, OverflowError):
        raise Wrong("wrong type") from None
    if not _FIRST <= made <= _LAST:
        raise Wrong("out of range")
    return made


def _outcome(value: Any) -> str:
    made = _text(value).lower()
    if made not in OUTCOMES:
        raise Wrong("out of range")
    return made


def _reason(value: Any) -> str | None:
    """Why an answer ended; of several answers "length" or an error goes before "stop"."""
    given = value if isinstance(value, list) else [value]
    reasons = [_text(each).lower()[:60] for each in given if each is not None]
    # What Anthropic's, Google's and older servers call it.
    reasons = [_SAME_REASON.get(each, each) for each in reasons]
    return next((each for each in reasons if each != "stop"), reasons[0] if reasons else None)


_SAME_REASON = {"max_tokens": "length", "max_output_tokens": "length", "end_turn": "stop", "eos": "stop"}


def _error(value: Any) -> bool | None:
    """True, or None where this field tells of none: another may."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value >= 400 or None
    return bool(value) or None


def _status(value: Any) -> bool | None:
    """Whether a status of HTTP tells of an error; None where it is none of an answer, or something else."""
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value <= 599:
        return None
    return value >= 400


def _messages(value: Any) -> tuple[tuple[str, str], ...]:
    """The (role, text) of a chat: OpenAI's ``content`` or OpenTelemetry's ``parts``, also as a JSON string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Wrong("wrong type") from None
    if not isinstance(value, list):
        raise Wrong("wrong type")
    made = []
    for each in value:
        if not isinstance(each, dict):
            raise Wrong("wrong type")
        role = each.get("role")
        content = each.get("content", each.get("parts"))
        made.append((role if isinstance(role, str) else "user", _content(content)))
    return tuple(made)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    texts = [part.get("text", part.get("content")) for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _answer(value: Any) -> str:
    """A text, or the texts of OpenTelemetry's output messages."""
    if isinstance(value, str) and value.lstrip()[:1] != "[":
        return value
    try:
        return "\n".join(text for _, text in _messages(value))
    except Wrong:
        return _text(value)


# By field: its names, the preferred one first, with how each is read.
_FIELDS: dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]] = {
    "id": (("id", _name), ("request_id", _name), ("gen_ai.response.id", _name)),
    "ts": (("ts", _time), ("timestamp", _time), ("@timestamp", _time), ("time", _time), ("created", _time)),
    "model": (("model", _name), ("gen_ai.response.model", _name), ("gen_ai.request.model", _name)),
    "prompt": (("prompt", _text), ("gen_ai.prompt", _text)),
    "messages": (("messages", _messages), ("gen_ai.input.messages", _messages)),
    "prompt_ids": (("prompt_ids", _ids), ("prompt_token_ids", _ids)),
    "answer": (
        ("answer", _text),
        ("completion", _text),
        ("gen_ai.output.messages", _answer),
        ("gen_ai.completion", _answer),
    ),
    "answer_ids": (("answer_ids", _ids), ("token_ids", _ids)),
    "n_in": tuple(
        (name, _count)
        for name in (
            "n_in",
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.prompt_tokens",
            "usage.prompt_tokens",
            "usage.input_tokens",
            "prompt_tokens",
            "input_tokens",
        )
    ),
    "n_out": tuple(
        (name, _count)
        for name in (
            "n_out",
            "gen_ai.usage.output_tokens",
            "gen_ai.usage.completion_tokens",
            "usage.completion_tokens",
            "usage.output_tokens",
            "completion_tokens",
            "output_tokens",
        )
    ),
    "finish_reason": (("finish_reason", _reason), ("gen_ai.response.finish_reasons", _reason)),
    "error": (("error", _error), ("error.type", _error), ("status_code", _status), ("status", _status)),
    "ttft_ms": (
        ("ttft_ms", _milliseconds),
        ("gen_ai.server.time_to_first_token", _seconds),
        ("gen_ai.client.operation.time_to_first_chunk", _seconds),
    ),
    "latency_ms": (
        ("latency_ms", _milliseconds),
        ("latency_s", _seconds),
        ("gen_ai.server.request.duration", _seconds),
        ("gen_ai.client.operation.duration", _seconds),
    ),
    "logprob_mean": (("logprob_mean", _logprob),),
    "outcome": (("outcome", _outcome),),
    "edit_distance": (("edit_distance", _share),),
    "critical": (("critical", _flag),),
}
_NAMES = {
    name: (field, convert, place) for field, names in _FIELDS.items() for place, (name, convert) in enumerate(names)
}
_MAKES_A_REQUEST = {
    "prompt",
    "prompt_ids",
    "answer",
    "answer_ids",
    "n_in",
    "n_out",
    "finish_reason",
    "answered",
    "latency_ms",
    "outcome",
}
