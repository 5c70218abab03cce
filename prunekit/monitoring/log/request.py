"""One request as a log tells of it, and the sample of a window that stays the same whenever it is drawn."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

OUTCOMES = ("accepted", "edited", "rejected", "escalated")
# What people had to do again, and what nobody could use.
REWORKED = ("edited", "rejected", "escalated")
WRONG = ("rejected", "escalated")
FAILURES = ("error", "abort", "aborted", "cancelled", "timeout")


@dataclass(frozen=True, slots=True)
class Request:
    """A request and its answer; whatever the log does not tell is None.

    ``id`` is made of the line where the log names none. ``ts`` is in seconds since 1970 (UTC). ``messages`` are the
    (role, text) of a chat, whose texts ``prompt`` holds one after another. ``n_in`` and ``n_out`` count tokens.
    ``outcome`` is one of OUTCOMES; ``edit_distance`` the share of the answer that was changed, 0 to 1.
    ``finish_reason`` is "error" where the log tells of an error. ``answered``: the log tells of none, by a status, but
    that alone does not say how the answer ended.
    """

    id: str
    ts: float | None = None
    model: str | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    answer: str | None = None
    answer_ids: tuple[int, ...] | None = None
    n_in: int | None = None
    n_out: int | None = None
    finish_reason: str | None = None
    ttft_ms: float | None = None
    latency_ms: float | None = None
    logprob_mean: float | None = None
    outcome: str | None = None
    edit_distance: float | None = None
    critical: bool | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    answered: bool = False

    @property
    def failed(self) -> bool:
        """Whether the server gave no whole answer."""
        return self.finish_reason in FAILURES

    @property
    def is_label(self) -> bool:
        """Whether the line only tells what became of a request of before."""
        return self.outcome is not None and not (
            self.prompt is not None
            or self.prompt_ids is not None
            or self.answer is not None
            or self.answer_ids is not None
            or self.n_in is not None
            or self.n_out is not None
            or self.finish_reason is not None
            or self.latency_ms is not None
        )


def clipped(request: Request, prompt: tuple[int, int], answer: tuple[int, int]) -> Request:
    """``request`` without what a model does not read: of the ``prompt`` the last so many tokens or characters are kept,
    of the ``answer`` the first, and one more, which tells that there was more."""

    def end(text: str) -> str:
        return text[-(prompt[1] + 1) :]

    return replace(
        request,
        prompt=None if request.prompt is None else end(request.prompt),
        prompt_ids=None if request.prompt_ids is None else request.prompt_ids[-(prompt[0] + 1) :],
        messages=request.messages and tuple((role, end(text)) for role, text in request.messages),
        answer=None if request.answer is None else request.answer[: answer[1] + 1],
        answer_ids=None if request.answer_ids is None else request.answer_ids[: answer[0] + 1],
    )


def order(request: Request) -> bytes:
    """A place of ``request`` among others that depends on its id alone."""
    return blake2b(request.id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def sample(requests: Iterable[Request], most: int) -> list[Request]:
    """At most ``most`` requests, the same ones whenever this is asked. A smaller sample begins a larger."""
    return heapq.nsmallest(most, requests, key=order)
