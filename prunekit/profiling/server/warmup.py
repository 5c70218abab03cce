"""Asking a server until its times are steady, with texts that are not measured afterwards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.errors import PrunekitError
from prunekit.profiling.server.load import Gun, closed
from prunekit.profiling.server.workload import Workload
from prunekit.utils.names import printable

STEADY = 0.05
_BATCH = 3
# What a server answers that does not take ignore_eos or min_tokens.
_REFUSALS = ("status 400", "status 422")


@dataclass(frozen=True)
class Warm:
    """How a warm-up went: how many ``requests`` it took, whether the last three ``medians`` (seconds a token, of three
    requests each) were within 5 %, and whether the server takes what asks for exact lengths."""

    requests: int
    steady: bool
    medians: tuple[float, ...]
    exact: bool


async def warm_up(gun: Gun, workload: Workload, side: int, most: int, until: float) -> Warm:
    """Ask at most ``most`` times. Raises PrunekitError where the server answers none of the first three requests."""
    exact = await _first(gun, workload, side)
    medians: list[float] = []
    made = 0
    while made < most and time.perf_counter() < until:
        jobs = workload.take(f"warm-up {made}", side, min(_BATCH, most - made), warm=True)
        volley = await closed(gun, jobs, 1, f"{workload.run_id}-w{side}-{made}", until, exact)
        made += len(volley.shots)
        # Lengths differ from text to text.
        good = [shot.e2e / max(1, shot.tokens or 1) for shot in volley.shots if shot.answer.ok]
        if not good:
            break
        for shot in volley.shots:
            usage = shot.answer.usage
            if workload.kind == "synthetic":
                workload.learn(shot.words, None if usage is None else usage.prompt)
        medians.append(statistics.median(good))
        if is_steady(medians):
            break
    return Warm(made, is_steady(medians), tuple(medians), exact)


def is_steady(medians: Sequence[float]) -> bool:
    """Whether the last three are within 5 % of their middle."""
    last = sorted(medians[-3:])
    return len(last) == 3 and last[2] - last[0] <= 2 * STEADY * last[1] and last[2] / last[1] - 1 <= STEADY


async def _first(gun: Gun, workload: Workload, side: int) -> bool:
    """Whether the server takes requests for exact lengths."""
    exact, said = True, []
    jobs = [*workload.take("first", side, 4, warm=True)]
    for number, job in enumerate(jobs):
        shot = await gun.fire(job, f"{workload.run_id}-f{side}-{number}", None, exact)
        if shot.answer.ok:
            return exact
        if exact and shot.answer.error in _REFUSALS:
            exact = False
            continue
        said.append(f"{shot.answer.error}" + (f" ({shot.answer.detail})" if shot.answer.detail else ""))
        if len(said) == 3:
            break
    raise PrunekitError(
        f"The server {printable(gun.endpoint.url)} answered none of the first {len(said)} requests: "
        f"{printable('; '.join(dict.fromkeys(said)))}. Check its log, its model's name and its API (--api)."
    )
