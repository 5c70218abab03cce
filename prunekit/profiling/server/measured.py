"""What the requests at one load say."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunekit.profiling.server.config import Slo
from prunekit.profiling.server.load import Shot, Volley
from prunekit.profiling.server.statistics import Quantile, quantile
from prunekit.utils.endpoints.answer import ANOTHER_MODEL

# Above these a measurement is void: seconds of lag at p99, the share of one CPU that the client computed.
MOST_LAG, MOST_CPU = 0.050, 0.90
# Above these something is said: failed requests, prompt tokens from a prefix cache, lengths off the ones asked for.
MOST_FAILED, MOST_CACHED, MOST_OFF = 0.01, 0.01, 0.05
_SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Load:
    """One load: ``kind`` is closed (``concurrency`` requests at a time), open (``rate`` requests a second), trace, or
    natural (a closed loop whose answers end by themselves)."""

    kind: str
    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        if self.kind == "open":
            return f"open loop, {self.rate:g} requests/s"
        if self.kind == "trace":
            return "trace"
        words = f"{self.concurrency} at a time"
        return f"natural lengths, {words}" if self.kind == "natural" else f"closed loop, {words}"


@dataclass(frozen=True)
class LoadResult:
    """All blocks of one endpoint at one load. Times are in seconds from when a request was to be sent; ``gap`` is
    between chunks, which may hold several tokens; ``first_answer`` is until the first token that is no reasoning, which
    a share ``reasoning`` of the answers held. ``tokens`` and ``prompt_tokens`` are the server's counts of the mean
    answer and prompt (None: it doesn't tell), ``characters`` those of the mean answer, ``length_ratio`` what was
    written over what was asked for, ``truncated`` the share of answers that ended at their limit. ``goodput`` is
    requests a second that met the SLO. ``void`` says why nothing here should be believed, ``notes`` what else to
    know."""

    load: Load
    requests: int
    failed: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float | None
    goodput: float | None
    good_share: float | None
    ttft: tuple[Quantile, ...]
    tpot: tuple[Quantile, ...]
    e2e: tuple[Quantile, ...]
    gap: tuple[Quantile, ...]
    first_answer: tuple[Quantile, ...]
    reasoning: float | None
    prompt_tokens: float | None
    tokens: float | None
    characters: float | None
    length_ratio: float | None
    truncated: float | None
    cached_share: float | None
    queue_ms: float | None
    lag_p99: float
    client_cpu: float
    cut: bool
    void: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        data = asdict(self)
        for name in ("ttft", "tpot", "e2e", "gap", "first_answer"):
            data[name] = [each.to_dict() for each in getattr(self, name)]
        data["load"]["name"] = self.load.name
        return {**data, "void": [*self.void], "notes": [*self.notes], "status": "void" if self.void else "measured"}


def is_good(shot: Shot, slo: Slo) -> bool:
    """Whether one request met every bound of ``slo``. An answer of one token has no TPOT to break; one
    whose tokens nobody counted does not keep a bound of TPOT."""
    if "tpot" in slo.bounds and shot.is_uncounted:
        return False
    times = {"ttft": shot.ttft, "tpot": shot.tpot, "e2e": shot.e2e}
    return shot.answer.ok and all((times[name] or 0.0) <= bound for name, bound in slo.bounds.items())


def measured(load: Load, volleys: Sequence[Volley], slo: Slo | None = None) -> LoadResult:
    """The blocks ``volleys`` of one endpoint together."""
    shots = [shot for volley in volleys for shot in volley.shots]
    good = [shot for shot in shots if shot.answer.ok]
    seconds = sum(volley.seconds for volley in volleys)
    usages = [shot.answer.usage for shot in good if shot.answer.usage is not None]
    # Of answers of which some are not counted, the others are no fair sample.
    lengths = [shot.tokens for shot in good if shot.tokens is not None]
    counted = bool(good) and len(lengths) == len(good)
    written = sum(lengths)
    read = sum(usage.prompt for usage in usages)
    cached = [usage.cached for usage in usages if usage.cached is not None]
    queues = [usage.queue_ms for usage in usages if usage.queue_ms is not None]
    asked = sum(shot.asked for shot in good)
    met = None if slo is None else sum(is_good(shot, slo) for shot in shots)
    # Of few requests the worst.
    lag = quantile([shot.lag for shot in shots], 0.99).value or 0.0
    cpu = sum(volley.cpu for volley in volleys) / seconds if seconds else 0.0
    length_ratio = written / asked if asked and counted else None
    truncated = sum(shot.answer.finish_reason == "length" for shot in good) / len(good) if good else None
    cached_share = sum(cached) / read if cached and read else None
    return LoadResult(
        load,
        len(shots),
        len(shots) - len(good),
        dict(Counter(shot.answer.error for shot in shots if shot.answer.error is not None)),
        seconds,
        len(good) / seconds if seconds else 0.0,
        written / seconds if counted and seconds else None,
        None if met is None or not seconds else met / seconds,
        None if met is None or not shots else met / len(shots),
        _quantiles([shot.ttft for shot in shots]),
        _quantiles([shot.tpot for shot in shots if shot.tpot is not None] if lengths else []),
        _quantiles([shot.e2e for shot in shots]),
        _quantiles([gap for shot in good for gap in shot.answer.gaps]),
        _quantiles([shot.first_answer for shot in shots]),
        sum(bool(shot.answer.reasoning) for shot in good) / len(good) if good else None,
        read / len(usages) if usages else None,
        written / len(good) if counted else None,
        sum(len(shot.answer.text) for shot in good) / len(good) if good else None,
        length_ratio,
        truncated,
        cached_share,
        statistics.median(queues) if queues else None,
        lag,
        cpu,
        any(volley.cut for volley in volleys),
        _void(lag, cpu, shots),
        _cut(volleys)
        + _reasoning(good)
        + _notes(load, len(shots), len(good), len(lengths), bool(usages), length_ratio, cached_share),
    )


def _void(lag: float, cpu: float, shots: Sequence[Shot]) -> tuple[str, ...]:
    made = []
    if not shots:
        made.append("No request was made.")
    if lag > MOST_LAG:
        made.append(f"The client was late by {1000 * lag:,.0f} ms (p99; at most 50): it measures itself.")
    if cpu > MOST_CPU:
        made.append(f"The client kept {cpu:.0%} of a CPU busy (at most 90 %): it measures itself.")
    starved = sum(shot.is_starved for shot in shots)
    if starved:
        made.append(
            f"The client had no connection left for {starved:,} requests, because of its limit of open files (raise it "
            "with `ulimit -n`): it measures itself."
        )
    others = sum(shot.answer.error == ANOTHER_MODEL for shot in shots)
    if others:
        made.append(
            f"Another model answered {others} of {len(shots)} requests: measure the server itself, not a gateway with "
            "a fallback."
        )
    return tuple(made)


def _reasoning(good: Sequence[Shot]) -> tuple[str, ...]:
    """What TTFT and lengths are of, where answers begin with reasoning."""
    count = sum(bool(shot.answer.reasoning) for shot in good)
    if not count:
        return ()
    made = f"{count} of {len(good)} answers held reasoning: TTFT is of its first token, and it counts in lengths."
    never = sum(shot.answer.first_text is None for shot in good)
    more = f" {never} ended before the answer itself began: allow more tokens (--new-tokens)." if never else ""
    return (made + more,)


def _cut(volleys: Sequence[Volley]) -> tuple[str, ...]:
    reasons = dict.fromkeys(volley.cut for volley in volleys if volley.cut)
    count = sum(len(volley.shots) for volley in volleys)
    return (f"Not all requests were made, only {count}: {', '.join(reasons)}.",) if reasons else ()


def _notes(
    load: Load,
    count: int,
    good: int,
    counted: int,
    usage: bool,
    length_ratio: float | None,
    cached: float | None,
) -> tuple[str, ...]:
    made = []
    if count - good > MOST_FAILED * count:
        made.append(f"{count - good} of {count} requests failed; they count as infinitely slow.")
    if good and not counted:
        made.append("The server does not count tokens, so there is no TPOT.")
    elif counted < good:
        made.append(f"Only of {counted} of {good} answers it is known how many tokens they had; lengths are not told.")
    elif counted and not usage:
        made.append(
            "The server does not count tokens. Answers that ended at their limit have as many as were asked for."
        )
    if load.kind != "natural" and length_ratio is not None and abs(length_ratio - 1) > MOST_OFF:
        made.append(
            f"Answers were {length_ratio:.0%} as long as asked: the server does not keep to exact lengths, so "
            "endpoints do not do the same work."
        )
    if cached is not None and cached > MOST_CACHED:
        made.append(f"{cached:.0%} of the prompt tokens came from the server's prefix cache.")
    return tuple(made)


def _quantiles(values: Sequence[float]) -> tuple[Quantile, ...]:
    return tuple(quantile(values, share) for share in _SHARES)


def medians(volley: Volley) -> dict[str, float]:
    """Of one block: median times and rates, to be compared with the block of the other endpoint beside it. Infinite
    where requests failed, NaN where the server does not count; nothing where no request was made."""
    if not volley.shots:
        return {}
    shots = volley.shots
    good = [shot for shot in shots if shot.answer.ok]
    tpots = [shot.tpot for shot in shots if shot.tpot is not None]
    lengths = [shot.tokens for shot in good if shot.tokens is not None]
    tokens = sum(lengths) if len(lengths) == len(good) else math.nan
    made = {
        "ttft": statistics.median(shot.ttft for shot in shots),
        "first_answer": statistics.median(shot.first_answer for shot in shots),
        "e2e": statistics.median(shot.e2e for shot in shots),
        "tpot": statistics.median(tpots) if tpots else math.nan,
    }
    if volley.seconds > 0:
        made |= {"requests_per_second": len(good) / volley.seconds, "tokens_per_second": tokens / volley.seconds}
    letters = sum(len(shot.answer.text) for shot in good)
    made["tokens"] = tokens / len(good) if good else math.inf
    made["characters"] = letters / len(good) if good else math.inf
    return made
