"""Joules a token and a request of each load, over the windows in which its requests ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.profiling.server_costs import Known, energy_of, unknown
from prunekit.profiling.server_energy import Meter, joules_of

if TYPE_CHECKING:
    from prunekit.profiling.server.measured import LoadResult


@dataclass(frozen=True)
class Energy:
    """Joules for one output token and one answered request of an endpoint at one load, prompts and idle time of the
    window included."""

    per_token: Known
    per_request: Known

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {"per_token": self.per_token.to_dict(), "per_request": self.per_request.to_dict()}


def meter(local: Sequence[bool]) -> Meter:
    """What counts the joules of servers, each of which is on this machine or not: the first GPU, else the processor."""
    if not all(local):
        return Meter.of("cpu", here=False)
    gpu = Meter.of("cuda:0", here=True)
    return gpu if gpu.sensor is not None else Meter.of("cpu", here=True)


def window_name(load: str, side: int) -> str:
    """What :class:`~prunekit.profiling.server_energy.Meter` knows the windows of an endpoint at a load by."""
    return f"{load}/{side}"


def energies(meter: Meter, load: str, results: Sequence[LoadResult]) -> tuple[Energy, ...]:
    """The energy of each endpoint at ``load``."""
    made = []
    for side, result in enumerate(results):
        joules = joules_of(meter.windows.get(window_name(load, side), []), meter.told)
        answered = result.requests - result.failed
        tokens = None if result.tokens is None else result.tokens * answered
        per_token = (
            unknown("the server does not count tokens")
            if tokens is None
            else energy_of(joules, tokens, "output tokens")
        )
        made.append(Energy(per_token, energy_of(joules, answered, "requests")))
    return tuple(made)
