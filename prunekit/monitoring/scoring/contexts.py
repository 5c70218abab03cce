"""Logged requests as the token ids that a model reads: the end of the prompt, then the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.data.chat_template import chat_template, render_chats
from prunekit.data.tokenised import bos, encode
from prunekit.errors import PrunekitError
from prunekit.monitoring.log.request import Request, clipped

# Requests with one token predict nothing.
_FEWEST = 2
# More characters than any tokenizer puts into so many tokens of prose; what lies before or behind them is not read.
_CHARACTERS_A_TOKEN = 32


@dataclass(frozen=True)
class ScoringConfig:
    """Of a window, ``prompts`` requests are read by the deployed model, and of these the ``share`` of the window, but
    at least ``least``, by the dense model too. ``prompt_tokens`` are read from the end of each prompt and
    ``answer_tokens`` from the beginning of each answer. ``reference`` prompts are kept as hidden states."""

    prompts: int = 32
    share: float = 0.01
    least: int = 20
    prompt_tokens: int = 256
    answer_tokens: int = 128
    reference: int = 256

    def __post_init__(self) -> None:
        bounds = {"prompts": 4, "least": 1, "prompt_tokens": _FEWEST, "answer_tokens": 1, "reference": 8}
        for name, least in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PrunekitError(
                    f"{name.replace('_', ' ').capitalize()} must be a whole number of at least {least}, got {value!r}."
                )
        if self.reference > 256:
            raise PrunekitError(f"At most 256 prompts are kept as the reference, got {self.reference}.")
        if not 0 < self.share <= 1:
            raise PrunekitError(f"The share of requests that the dense model reads lies in (0, 1], got {self.share!r}.")

    def shortened(self, request: Request) -> Request:
        """What of it is read."""
        prompt, answer = ((each, each * _CHARACTERS_A_TOKEN) for each in (self.prompt_tokens, self.answer_tokens))
        return clipped(request, prompt, answer)

    def shadowed(self, window: int) -> int:
        """How many of a window of that many requests the dense model reads."""
        return max(self.least, math.ceil(self.share * window))


@dataclass(frozen=True, slots=True)
class Context:
    """Token ids ``ids`` of request ``id``: the first ``prompt`` of them are the prompt's, the others the answer's.
    ``whole`` says that nothing was cut off. ``said`` is the log-probability a token that the server told, in nats."""

    id: str
    ids: tuple[int, ...]
    prompt: int
    whole: bool
    said: float | None = None


class Reader:
    """Makes contexts of requests as the model of ``tokenizer`` and ``vocab_size`` reads them."""

    def __init__(self, tokenizer: Any, vocab_size: int, config: ScoringConfig):
        self.tokenizer, self.config = tokenizer, config
        self._vocab_size = vocab_size
        self._start = bos(tokenizer)
        self._chats = chat_template(tokenizer) is not None

    def read(self, requests: Sequence[Request]) -> tuple[list[Context], dict[str, str]]:
        """The contexts of ``requests``, and for those that have none, by their ids, why.

        Token ids of the log are taken as they are. A chat goes through the model's own template. Raises PrunekitError
        where the tokenizer fails, or the template does not end.
        """
        why: dict[str, str] = {}
        prompts = self._prompts(requests, why)
        answers = self._answers(requests)
        made = []
        for request, (prompt, cut), (answer, answer_cut) in zip(requests, prompts, answers, strict=True):
            if request.id in why:
                continue
            context = self._context(request, prompt, answer, cut or answer_cut)
            if isinstance(context, str):
                why[request.id] = context
            else:
                made.append(context)
        return made, why

    def _context(self, request: Request, prompt: list[int], answer: list[int], cut: bool) -> Context | str:
        config = self.config
        if self._start is not None and prompt[:1] != [self._start]:
            prompt = [self._start, *prompt]
        if len(prompt) > config.prompt_tokens:
            # A sentence that begins in the middle is read after BOS, as other texts are.
            prompt, cut = prompt[-config.prompt_tokens :], True
            if self._start is not None:
                prompt[0] = self._start
        if len(answer) > config.answer_tokens:
            answer, cut = answer[: config.answer_tokens], True
        if len(prompt) < _FEWEST:
            return "the log has no prompt of at least two tokens for it"
        if not (min(prompt + answer) >= 0 and max(prompt + answer) < self._vocab_size):
            return "its token ids are not of this model's vocabulary"
        return Context(request.id, (*prompt, *answer), len(prompt), not cut, request.logprob_mean)

    def _prompts(self, requests: Sequence[Request], why: dict[str, str]) -> list[tuple[list[int], bool]]:
        most = self.config.prompt_tokens * _CHARACTERS_A_TOKEN
        texts = [each.prompt or "" if each.prompt_ids is None else "" for each in requests]
        chats = [place for place, each in enumerate(requests) if each.messages and each.prompt_ids is None]
        if chats and self._chats:
            asked = [[{"role": role, "content": text} for role, text in requests[at].messages or ()] for at in chats]
            for at, text in zip(chats, render_chats(self.tokenizer, asked, generation=True), strict=True):
                if isinstance(text, PrunekitError):
                    why[requests[at].id] = str(text)
                else:
                    texts[at] = text
        ids = encode(self.tokenizer, [text[-most:] for text in texts])
        return [
            (list(each.prompt_ids), False) if each.prompt_ids is not None else (made, len(text) > most)
            for each, made, text in zip(requests, ids, texts, strict=True)
        ]

    def _answers(self, requests: Sequence[Request]) -> list[tuple[list[int], bool]]:
        most = self.config.answer_tokens * _CHARACTERS_A_TOKEN
        texts = [each.answer or "" if each.answer_ids is None else "" for each in requests]
        ids = encode(self.tokenizer, [text[:most] for text in texts])
        return [
            (list(each.answer_ids), False) if each.answer_ids is not None else (made, len(text) > most)
            for each, made, text in zip(requests, ids, texts, strict=True)
        ]
