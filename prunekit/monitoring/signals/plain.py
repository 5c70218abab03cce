"""The signals that need no model: lengths, token mix, ends of answers, repetition, errors, times, outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from prunekit.monitoring.signals.divergence import jensen_shannon, psi
from prunekit.monitoring.signals.protocol import Kind, Scored
from prunekit.monitoring.signals.reference import Reference
from prunekit.monitoring.signals.window import Figures

# Fewer values in a window tell nothing.
LEAST_VALUES = 50
_LEAST_OUTCOMES, _LEAST_ANSWERS = 20, 20


@dataclass(frozen=True)
class Plain:
    """A signal of a window's counts. ``figure`` gives its value against the reference, greater where it is worse;
    ``trials`` what a share was counted of; ``floor`` the least standard deviation of transformed figures."""

    name: str
    kind: Kind
    title: str
    transform: str
    figure: Callable[[Figures, Reference], Scored]
    trials: Callable[[Figures], int] | None = None
    floor: float = 0.0

    @property
    def compares(self) -> bool:
        """Whether a figure is a distance to the reference, so that a window of it is compared with the rest."""
        return self.transform == "cube-root"


def _too_few(found: int, what: str, least: int) -> Scored:
    if not found:
        return Scored(None, f"the log tells no {what}")
    return Scored(None, f"{found} {what} in the window, fewer than {least}")


def _length_in(window: Figures, reference: Reference) -> Scored:
    if (found := int(window.lengths_in.sum())) < LEAST_VALUES:
        return _too_few(found, "lengths of prompts", LEAST_VALUES)
    return Scored(jensen_shannon(window.lengths_in, reference.lengths_in, 0))


def _length_out(window: Figures, reference: Reference) -> Scored:
    if (found := int(window.lengths_out.sum())) < LEAST_VALUES:
        return _too_few(found, "lengths of answers", LEAST_VALUES)
    return Scored(jensen_shannon(window.lengths_out, reference.lengths_out, 0))


def _token_mix(window: Figures, reference: Reference) -> Scored:
    mix = reference.mix
    if mix is None:
        return Scored(None, "the reference tells no prompts")
    if (found := window.counts.prompts[mix.source]) < LEAST_VALUES:
        return _too_few(found, "token ids of prompts" if mix.source == "ids" else "texts of prompts", LEAST_VALUES)
    counts = mix.of(window)
    return Scored(jensen_shannon(counts, mix.counts), details={"psi": round(psi(counts, mix.counts), 6)})


def _share(
    what: str, part: Callable[[Figures], int], whole: Callable[[Figures], int], least: int
) -> Callable[..., Scored]:
    def figure(window: Figures, reference: Reference) -> Scored:
        found = whole(window)
        return Scored(part(window) / found) if found >= least else _too_few(found, what, least)

    return figure


def _failed(window: Figures, reference: Reference) -> Scored:
    """Of all requests: some servers tell of an end only where it is a failure. Whether they tell of ends at all, the
    reference knows: a window of theirs without any is one without failures. Of the others it is one that lost them."""
    told, found = window.counts.told, window.counts.requests
    if not (told or reference.ended) or (reference.tells_ends and 2 * told < found):
        return _too_few(told, "ends, errors or statuses of answers", found // 2)
    if found < LEAST_VALUES:
        return _too_few(found, "requests", LEAST_VALUES)
    return Scored(window.counts.failed / found)


def _sent(window: Figures) -> int:
    return window.counts.requests


def _ended(window: Figures) -> int:
    return window.counts.ended


def _judged(window: Figures) -> int:
    return len(window.counts.outcomes)


def _mean(
    what: str,
    values_of: Callable[[Figures], list[float]],
    least: int,
    shown: Callable[[float], float] = lambda mean: mean,
) -> Callable[..., Scored]:
    """The mean of a window's values as ``shown``: of logarithms by their exponential."""

    def figure(window: Figures, reference: Reference) -> Scored:
        values = values_of(window)
        if len(values) < least:
            return _too_few(len(values), what, least)
        return Scored(shown(math.fsum(values) / len(values)))

    return figure


PLAIN = (
    Plain("input_length", "input", "length of prompts (JS divergence, bits)", "cube-root", _length_in, floor=0.005),
    Plain("token_mix", "input", "tokens of prompts (JS divergence, bits)", "cube-root", _token_mix, floor=0.001),
    Plain("output_length", "output", "length of answers (JS divergence, bits)", "cube-root", _length_out, floor=0.005),
    Plain(
        "cut_answers",
        "output",
        "share of answers cut at the limit",
        "arcsine",
        _share("reasons why answers ended", lambda window: window.counts.cut, _ended, LEAST_VALUES),
        _ended,
    ),
    Plain(
        "errors",
        "server",
        "share of requests that failed",
        "arcsine",
        _failed,
        _sent,
    ),
    Plain(
        "repetition",
        "output",
        "share of repeated 4-grams of answers",
        "none",
        _mean("answers of four tokens or more", lambda window: window.counts.repetition, _LEAST_ANSWERS),
        floor=0.003,
    ),
    Plain(
        "latency",
        "load",
        "latency, geometric mean, ms",
        "log",
        _mean("latencies", lambda window: window.counts.latency, LEAST_VALUES, math.exp),
        floor=0.01,
    ),
    Plain(
        "ttft",
        "load",
        "time to first token, geometric mean, ms",
        "log",
        _mean("times to first token", lambda window: window.counts.ttft, LEAST_VALUES, math.exp),
        floor=0.01,
    ),
    Plain(
        "error_rate",
        "quality",
        "share of answers rejected or escalated",
        "arcsine",
        _share("outcomes", lambda window: sum(wrong for wrong, _ in window.counts.outcomes), _judged, _LEAST_OUTCOMES),
        _judged,
    ),
    Plain(
        "rework_rate",
        "quality",
        "share of answers not accepted as they were",
        "arcsine",
        _share("outcomes", lambda window: sum(again for _, again in window.counts.outcomes), _judged, _LEAST_OUTCOMES),
        _judged,
    ),
    Plain(
        "edit_distance",
        "quality",
        "share of an answer that was changed",
        "none",
        _mean("edit distances", lambda window: window.counts.edits, _LEAST_OUTCOMES),
        floor=0.005,
    ),
)
