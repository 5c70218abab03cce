"""Joules a token and a request of each load, over the windows in which its requests ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.profiling.server_costs import Known, energy_of, unknown
from prunekit.profiling.server_energy import Meter, above_idle, joules_of

if TYPE_CHECKING:
    from prunekit.profiling.server.measured import LoadResult


@dataclass(frozen=True)
class Energy:
    """Joules for one output token and one answered request of an endpoint at one load, prompts and idle time of the
    window included; the same less what the idle machine draws, ``idle_watts``; ``method`` is what counted, and what."""

    per_token: Known
    per_request: Known
    above_idle_per_token: Known
    above_idle_per_request: Known
    idle_watts: Known
    method: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        data: dict[str, Any] = dict(vars(self))
        return {name: each.to_dict() if isinstance(each, Known) else each for name, each in data.items()}


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
    made, idle = [], meter.idle_watts
    for side, result in enumerate(results):
        windows = meter.windows.get(window_name(load, side), [])
        joules = joules_of(windows, meter.told)
        above = above_idle(windows, joules, idle)
        made.append(Energy(*_shared(joules, result), *_shared(above, result), idle, meter.told))
    return tuple(made)


def _shared(joules: Known, result: LoadResult) -> tuple[Known, Known]:
    """``joules`` for an output token and for an answered request."""
    answered = result.requests - result.failed
    if result.tokens is None:
        per_token = unknown("the server does not count tokens")
    else:
        per_token = energy_of(joules, result.tokens * answered, "output tokens")
    return per_token, energy_of(joules, answered, "requests")
