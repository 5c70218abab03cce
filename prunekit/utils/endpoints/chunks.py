"""What the chunks of a stream, or one whole answer, say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from prunekit.utils.endpoints.answer import Usage, read_usage
from prunekit.utils.endpoints.naming import LONGEST
from prunekit.utils.names import sentence

_LONGEST_REASON = 100


@dataclass
class Received:
    """What has come of an answer so far. ``malformed`` says what was wrong with a chunk, ``refusal`` what the server
    said instead of an answer, ``fallback`` whether a gateway says that it asked another model than the first."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    first_text: float | None = None
    first_chunk: float | None = None
    last_chunk: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    done: bool = False
    malformed: str = ""
    refusal: str = ""
    fallback: bool = False

    @property
    def first(self) -> float | None:
        return self.times[0] if self.times else self.first_chunk

    def take(self, data: str, now: float) -> None:
        """The data of one event, which came at the second ``now``."""
        if self.done or not data.strip():
            return
        if data.strip() == "[DONE]":
            self.done = True
            return
        try:
            made = json.loads(data, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            self.malformed = self.malformed or "a chunk is no JSON"
            return
        self.read(made, now)

    def read(self, made: Any, now: float) -> None:
        """A chunk, or a whole answer, as JSON."""
        if not isinstance(made, dict):
            self.malformed = self.malformed or "a chunk is no JSON object"
            return
        if made.get("error"):
            self.refusal = self.refusal or said_in(made)
            return
        self.usage = read_usage(made) or self.usage
        if isinstance(made.get("model"), str):
            self.model = made["model"][:LONGEST]
        choices = made.get("choices")
        if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
            if choices is not None or "usage" not in made:
                self.malformed = self.malformed or "a chunk has no choices"
            return
        if choices:
            self._choice(choices[0], now)

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        if self.first_chunk is None:
            self.first_chunk = now
        self.last_chunk = now
        inner = choice.get("delta") or choice.get("message") or {}
        inner = inner if isinstance(inner, dict) else {}
        text = _text(inner.get("content")) or _text(choice.get("text"))
        thought = _text(inner.get("reasoning_content")) or _text(inner.get("reasoning"))
        if text:
            self.first_text = now if self.first_text is None else self.first_text
            self.texts.append(text)
        if thought:
            self.reasonings.append(thought)
        if text or thought or inner.get("tool_calls"):
            self.times.append(now)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason[:_LONGEST_REASON]


def said_in(made: Any) -> str:
    """What a server says in an error's JSON, shortened; nothing where that is no sentence."""
    error = made.get("error", made) if isinstance(made, dict) else made
    for name in ("message", "detail"):
        if isinstance(error, dict) and isinstance(error.get(name), str):
            return sentence(error[name])[:300]
    return sentence(error)[:300] if isinstance(error, str) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
