"""What a load test is asked to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable

_SLO_NAMES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Slo:
    """Service-level objective: the most milliseconds of TTFT, TPOT and E2E at percentile ``percentile``; None: any."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if not 50 <= self.percentile < 100:
            raise PrunekitError(f"The percentile of an SLO must be from 50 to below 100, got {self.percentile!r}.")

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds by quantity."""
        named = {name: getattr(self, name) for name in _SLO_NAMES}
        return {name: value / 1000 for name, value in named.items() if value is not None}

    @property
    def words(self) -> str:
        said = ", ".join(f"{name.upper()} ≤ {1000 * value:g} ms" for name, value in self.bounds.items())
        return f"{said} at p{self.percentile:g}"


def parse_slo(text: str, percentile: float = 95.0) -> Slo:
    """``ttft=500,tpot=50`` in milliseconds. Raises PrunekitError where it is something else."""
    made: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in _SLO_NAMES or name in made or not 0 < number < 1e9:
            raise PrunekitError(
                f"{printable(text)!r} is no SLO; write milliseconds like ttft=500,tpot=50 (names: "
                f"{', '.join(_SLO_NAMES)}, each once)."
            )
        made[name] = number
    return Slo(**made, percentile=percentile)


@dataclass(frozen=True)
class ServerConfig:
    """``requests`` of each endpoint at each load, in ``blocks`` turns (A B B A …). Closed loops keep each number of
    ``concurrency`` requests under way; open loops send at each of ``rates`` a second (None: 0.6 of what the slower
    endpoint's closed loop came to), with gaps of a gamma distribution (``burstiness`` 1: Poisson; below: bursts).

    Prompts have about ``prompt`` tokens and answers exactly ``tokens``, where the server can; both are spread by a
    lognormal distribution with ``spread``; natural answers end by themselves, at ``natural_tokens`` at most (0: there
    are none).
    ``prompts`` and ``trace`` are files to take instead, ``speed`` divides a trace's times. ``timeout`` is in seconds,
    until the first token and between two; ``max_minutes`` bounds the whole. ``energy`` asks for joules, where a counter
    of this machine can be read and the servers run on it.
    """

    requests: int = 60
    blocks: int = 4
    concurrency: tuple[int, ...] = (1, 2)
    rates: tuple[float, ...] | None = None
    burstiness: float = 1.0
    prompt: int = 32
    tokens: int = 16
    spread: float = 0.25
    natural_tokens: int = 64
    prompts: Path | None = None
    trace: Path | None = None
    speed: float = 1.0
    slo: Slo | None = None
    warmup: int = 40
    timeout: float = 60.0
    max_minutes: float = 10.0
    energy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"requests": (2, 10**7), "blocks": (1, 100), "prompt": (1, 10**6), "tokens": (1, 10**6)}
        whole |= {"natural_tokens": (0, 10**6), "warmup": (3, 10_000), "seed": (0, 2**63)}
        for name, (least, most) in whole.items():
            _check(name.replace("_", " "), getattr(self, name), least, most, whole=True)
        for each in self.concurrency:
            _check("concurrency", each, 1, 1000, whole=True)
        for rate in self.rates or ():
            _check("rate", rate, 1e-3, 1e4)
        for name, each_load in (("concurrency", self.concurrency), ("rate", self.rates or ())):
            # Loads are told apart by their names.
            if len({f"{each:g}" for each in each_load}) < len(each_load):
                raise PrunekitError(f"Two loads have the same {name} (to six digits); name each {name} once.")
        bounds = {"burstiness": (0.05, 1e6), "spread": (0, 2), "speed": (1e-3, 1e6), "timeout": (0.1, 3600)}
        for name, (low, high) in {**bounds, "max_minutes": (0.05, 24 * 60)}.items():
            _check(name.replace("_", " "), getattr(self, name), low, high)
        if self.prompts is not None and self.trace is not None:
            raise PrunekitError("Name either prompts or a trace: a trace brings its own requests.")
        if self.blocks > self.requests:
            raise PrunekitError(
                f"{self.requests} requests can't be made in {self.blocks} blocks; ask for more requests."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; files by their names alone."""
        data = asdict(self)
        for name in ("prompts", "trace"):
            data[name] = None if data[name] is None else data[name].name
        return data


def _check(name: str, value: Any, least: float, most: float, *, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise PrunekitError(f"{name.capitalize()} must be {what} from {least:g} to {most:g}, got {value!r}.")
