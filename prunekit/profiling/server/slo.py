"""The highest load at which an endpoint keeps its service-level objective."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunekit.profiling.server.config import Slo
from prunekit.profiling.server.load import Shot, Volley
from prunekit.profiling.server.measured import MOST_FAILED, Load, is_good, measured
from prunekit.profiling.server.statistics import Ratio, quantile, ratio_of

# Rates are searched until the lowest that fails is at most so much above the highest that holds.
STEP = 1.1
# So many times the start may the search go up or down by a factor of two.
_DOUBLINGS = 7
# Near an earlier result steps are small at first.
_NEAR = 1.25
UNCOUNTED = "TPOT not known: the server does not count tokens"
# A probe lasts at least so many times as long as the longest wait that is allowed: above what the server can do, the
# queue must have the time to grow until the SLO is broken.
_LASTS = 10
# A bound that can't be told is not kept.
_SHARES: dict[str, Callable[[Shot], float | None]] = {
    "ttft": lambda shot: shot.ttft,
    "tpot": lambda shot: math.inf if shot.is_uncounted else shot.tpot,
    "e2e": lambda shot: shot.e2e,
}

Found = Literal["found", "never met", "never broken", "time was up"]


@dataclass(frozen=True)
class Probe:
    """One rate that was tried, in requests a second; ``why`` says what was broken, ``void`` whether the client was too
    slow to tell."""

    rate: float
    holds: bool
    why: str
    requests: int
    goodput: float
    void: bool = False


@dataclass(frozen=True)
class Search:
    """What one block's search came to on one endpoint: ``holds`` is the highest rate tried that held, None where none
    did, ``fails`` the lowest above it that did not."""

    status: Found
    holds: float | None
    probes: tuple[Probe, ...]
    fails: float | None = None

    @property
    def rate(self) -> float | None:
        """The estimate of the highest load: the geometric middle of what holds and what fails, where the search was
        done; else what holds."""
        if self.status != "found" or self.holds is None or self.fails is None:
            return self.holds
        return math.sqrt(self.holds * self.fails)

    @property
    def doubt(self) -> float:
        """By how much the logarithm of the highest load may differ from that of :attr:`rate`: half the bracket."""
        return 0.0 if self.holds is None or self.fails is None else math.log(self.fails / self.holds) / 2


def is_told(volley: Volley, slo: Slo, count: int) -> bool:
    """Whether ``volley`` tells how ``count`` requests at its rate fare. Where the time was up before all were made, it
    does only if those that were made broke the SLO already: a queue that grows had no time to be seen."""
    if volley.cut != "time was up":
        return True
    failed = sum(not shot.answer.ok for shot in volley.shots)
    return failed > MOST_FAILED * count or hopeless(slo, count)(volley.shots)


def judge(rate: float, volley: Volley, slo: Slo) -> Probe:
    """Whether the requests of ``volley`` keep ``slo``: each bound at its percentile, and at most 1 % failed."""
    shots = volley.shots
    found = measured(Load("open", rate=rate), [volley], slo)
    broken = []
    for name, bound in slo.bounds.items():
        values = [value for shot in shots if (value := _SHARES[name](shot)) is not None]
        value = quantile(values, slo.percentile / 100).value
        if name == "tpot" and value == math.inf and any(shot.is_uncounted for shot in shots):
            broken.append(UNCOUNTED)
        elif value is not None and value > bound:
            told = "infinite" if math.isinf(value) else f"{1000 * value:,.0f} ms"
            broken.append(f"{name.upper()} {told}")
    if found.failed > MOST_FAILED * len(shots):
        broken.append(f"{found.failed} of {len(shots)} requests failed")
    if volley.cut == "the SLO was broken" and not broken:
        broken.append("too many requests broke the SLO")
    if not shots:
        broken.append("no request was made")
    return Probe(rate, not broken, ", ".join(broken), len(shots), found.goodput or 0.0, bool(found.void))


def probe_size(slo: Slo, rate: float, requests: int) -> int:
    """How many requests tell whether ``rate`` a second keeps ``slo``: at least ``requests``. With a bound of TPOT alone
    nothing bounds the queue, so there is no wait to outlast."""
    waits = [bound for name, bound in slo.bounds.items() if name != "tpot"]
    return max(requests, math.ceil(_LASTS * rate * max(waits, default=0.0)))


def hopeless(slo: Slo, count: int) -> Callable[[Sequence[Shot]], bool]:
    """Whether, of ``count`` requests in all, so many broke the SLO that the others can't mend it."""
    allowed = count - math.ceil(slo.percentile / 100 * count - 1e-9)
    bounds = slo.bounds
    seen, broken = 0, dict.fromkeys(bounds, 0)

    def asked(shots: Sequence[Shot]) -> bool:
        nonlocal seen
        for shot in shots[seen:]:
            for name, bound in bounds.items():
                broken[name] += (_SHARES[name](shot) or 0.0) > bound
        seen = len(shots)
        return any(each > allowed for each in broken.values())

    return asked


@dataclass
class Bracket:
    """What is known of one endpoint's highest rate: ``holds`` and ``fails`` are the nearest rates on either side. From
    ``start`` rates are doubled and halved until one holds and another fails, then it goes on between them; where
    ``start`` is ``near`` the highest rate, the first steps are small."""

    start: float
    near: bool = False
    holds: float | None = None
    fails: float | None = None
    probes: list[Probe] = field(default_factory=list)

    def next_rate(self) -> float | None:
        """The rate to try next; None where the bracket is narrow, or the search has gone as far as it may."""
        if self.holds is None and self.fails is None:
            return self.start
        tried = len(self.probes)
        if self.near and tried < 3 and (self.holds is None) != (self.fails is None):
            return float(self.start * _NEAR ** (tried if self.fails is None else -tried))
        if self.holds is None and self.fails is not None:
            return self.fails / 2 if self.fails > self.start / 2**_DOUBLINGS else None
        if self.fails is None and self.holds is not None:
            return self.holds * 2 if self.holds < self.start * 2**_DOUBLINGS else None
        assert self.holds is not None and self.fails is not None
        return math.sqrt(self.holds * self.fails) if self.fails / self.holds > STEP else None

    def add(self, probe: Probe) -> None:
        self.probes.append(probe)
        if probe.holds:
            self.holds = max(self.holds or 0.0, probe.rate)
        else:
            self.fails = min(self.fails or math.inf, probe.rate)
        # One noisy probe must not turn the bracket inside out.
        if self.holds is not None and self.fails is not None and self.holds >= self.fails:
            self.holds = max((each.rate for each in self.probes if each.holds and each.rate < self.fails), default=None)

    @property
    def found(self) -> Search:
        probes = tuple(self.probes)
        if self.holds is None:
            tried_all = self.fails is not None and self.next_rate() is None
            return Search("never met" if tried_all else "time was up", None, probes)
        if self.fails is None:
            return Search("never broken" if self.next_rate() is None else "time was up", self.holds, probes)
        return Search("found" if self.next_rate() is None else "time was up", self.holds, probes, self.fails)


def begun(start: float, *, draw: random.Random, around: float | None = None) -> Bracket:
    """A bracket that begins at ``start``, or near ``around``, an earlier block's result.

    The first rate is moved by up to half a step at random, by ``draw``: else blocks try the same rates, and all are
    wrong by the same share of a step.
    """
    step = 2.0 if around is None else _NEAR
    return Bracket((start if around is None else around) * step ** draw.uniform(-0.5, 0.5), near=around is not None)


@dataclass(frozen=True)
class Capacity:
    """The highest load within the SLO by endpoint, the baseline first where there is one; one search a block."""

    slo: Slo
    searches: tuple[tuple[Search, ...], ...]

    @property
    def rates(self) -> list[float | None]:
        """The geometric mean over blocks of requests a second: over those that were searched to the end, where there
        are any; None where a block found none."""
        return [_middle(each) for each in self.searches]

    @property
    def status(self) -> list[str]:
        return [_status(each) for each in self.searches]

    @property
    def open_ended(self) -> list[bool]:
        """Whether the highest load may be more than the rate: no search found one that breaks the SLO and was done."""
        pairs = zip(self.rates, self.status, strict=True)
        return [rate is not None and word in ("never broken", "time was up") for rate, word in pairs]

    @property
    def ends(self) -> list[tuple[float, float] | None]:
        """The lowest and the highest rate of the blocks that were searched to the end, None where that was not two."""
        made = []
        for searches in self.searches:
            rates = [each.rate for each in searches if each.status == "found" and each.rate is not None]
            made.append((min(rates), max(rates)) if len(rates) > 1 else None)
        return made

    @property
    def ratio(self) -> Ratio:
        """Endpoint over baseline, of the blocks that were searched to the end on both.

        With the half t of Student's interval over blocks and the mean half b of the brackets, both in logarithms, the
        interval reaches √(t² + b²) to either side. Where blocks differ by chance, t covers. Where they do not, the
        error is at most b. (Coverage by simulation: tests/profiling/test_server_slo.py.)
        """
        if len(self.searches) < 2 or any(word in ("never met", "never broken") for word in self.status):
            return Ratio(None)
        pairs = zip(*self.searches, strict=False)
        done = [(a, b) for a, b in pairs if a.status == b.status == "found"]
        return _widened(
            ratio_of([(a.rate or 0.0, b.rate or 0.0) for a, b in done]),
            sum(a.doubt + b.doubt for a, b in done) / max(1, len(done)),
        )

    @property
    def void(self) -> int:
        """At how many of the rates tried the client was too slow to tell."""
        return sum(probe.void for searches in self.searches for each in searches for probe in each.probes)

    @property
    def words(self) -> list[str]:
        """A sentence for each endpoint."""
        return [_said(*each) for each in zip(self.rates, self.status, self.searches, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        made = []
        for searches, rate, word, said in zip(self.searches, self.rates, self.status, self.words, strict=True):
            blocks = [
                {
                    "status": each.status,
                    "rate": each.rate,
                    "holds": each.holds,
                    "fails": each.fails,
                    "probes": [dict(vars(one)) for one in each.probes],
                }
                for each in searches
            ]
            made.append({"rate": rate, "status": word, "words": said, "blocks": blocks})
        bounds = {f"{name}_ms": 1000 * value for name, value in self.slo.bounds.items()}
        slo = {**bounds, "percentile": self.slo.percentile}
        return {"slo": slo, "endpoints": made, "ratio": self.ratio.to_dict()}


def _widened(ratio: Ratio, doubt: float) -> Ratio:
    """``ratio`` with an interval that holds ``doubt`` too, in logarithms."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return ratio
    reach = math.hypot(math.log(ratio.high / ratio.low) / 2, doubt)
    return replace(
        ratio,
        low=ratio.value * math.exp(-reach),
        high=ratio.value * math.exp(reach),
        how=f"{ratio.how}, widened by the brackets of the searches",
    )


def _middle(searches: Sequence[Search]) -> float | None:
    done = [each for each in searches if each.status == "found"]
    rates = [each.rate for each in done or searches if each.rate is not None]
    if not rates or any(each.status == "never met" for each in searches):
        return None
    return math.exp(sum(map(math.log, rates)) / len(rates))


def _status(searches: Sequence[Search]) -> str:
    """The word of all blocks: the worst of them."""
    words = {each.status for each in searches}
    for word in ("never met", "never broken"):
        if word in words:
            return word
    if not words:
        return "not measured"
    return "found" if "found" in words else "time was up"


def _said(rate: float | None, status: str, searches: Sequence[Search]) -> str:
    if status == "never met":
        uncounted = any(UNCOUNTED in probe.why for each in searches for probe in each.probes)
        return "the SLO is not met at any load that was tried" + (f" ({UNCOUNTED})" if uncounted else "")
    if status == "not measured":
        return "no search was done to its end"
    if rate is None:
        return "no load within the SLO was found before the time was up"
    if status == "never broken":
        return f"at least {rate:.3g} requests/s: the highest load that was tried did not break the SLO"
    return f"{rate:.3g} requests/s" + (
        "" if status == "found" else " or more: the time was up before the search was done"
    )


__all__ = ["Bracket", "Capacity", "Probe", "Search", "begun", "hopeless", "is_good", "is_told", "judge", "probe_size"]
