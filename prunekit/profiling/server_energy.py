"""Joules of the windows in which a load test ran, where the server's machine is this one and has a counter."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prunekit.errors import PrunekitError
from prunekit.profiling.energy import IDLE_SECONDS, WINDOW_SECONDS, Sensor, moved, open_sensor
from prunekit.profiling.server_costs import Known, unknown
from prunekit.utils.numerics.student import half_interval
from prunekit.utils.timing import Clock

IDLE = "idle"
# Of the time that is left, idleness gets at most so much.
_IDLE_SHARE = 0.1
ELSEWHERE = "the server runs on another machine, whose counters can't be read here"


@dataclass(frozen=True)
class Window:
    """What the counter said of one block of requests; ``why`` says why it said nothing."""

    seconds: float
    joules: float | None = None
    why: str = ""


@dataclass
class Meter:
    """A counter, read around blocks of requests. ``sensor`` of None measures nothing, for the reason ``why``.

    >>> meter = Meter.of("cpu", here=True)  # doctest: +SKIP
    >>> with meter.window("endpoint"):  # doctest: +SKIP
    ...     send_requests()
    >>> joules_of(meter.windows["endpoint"])  # doctest: +SKIP
    """

    sensor: Sensor | None
    why: str = ""
    now: Clock = time.monotonic
    windows: dict[str, list[Window]] = field(default_factory=dict)

    @classmethod
    def of(cls, device: str, *, here: bool) -> Meter:
        """The counter of ``device`` (``cpu``, ``cuda:1``). ``here``: the server runs on this machine."""
        if not here:
            return cls(None, ELSEWHERE)
        try:
            return cls(open_sensor(device))
        except PrunekitError as error:
            return cls(None, str(error).rstrip("."))

    @property
    def told(self) -> str:
        """What measures, and what it counts; or why nothing does."""
        return self.why if self.sensor is None else f"{self.sensor.method}, {self.sensor.scope}"

    def idle_seconds(self, left: float) -> float:
        """For how long to let the servers idle, of ``left`` seconds; 0 where there is no counter, or no time."""
        seconds = min(IDLE_SECONDS, _IDLE_SHARE * left)
        return 0.0 if self.sensor is None or seconds < WINDOW_SECONDS else seconds

    @property
    def idle_watts(self) -> Known:
        """What the machine draws while its servers have nothing to do, from the window :data:`IDLE`."""
        windows = self.windows.get(IDLE, [])
        joules = joules_of(windows, self.told)
        if not windows:
            joules = unknown(self.why or "there was no time for an idle window")
        if joules.value is None:
            return unknown(joules.how)
        return Known(joules.value / sum(each.seconds for each in windows), "measured", joules.how)

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """One window of the endpoint ``name`` while the block runs. A counter that fails is told in the window, and the
        load test goes on."""
        begin, why = self.now(), self.why
        if self.sensor is not None:
            try:
                self.sensor.begin()
            except PrunekitError as error:
                why = str(error).rstrip(".")
        yield
        seconds, joules = self.now() - begin, None
        if self.sensor is not None and not why:
            try:
                joules = moved(self.sensor.end())
            except PrunekitError as error:
                why = str(error).rstrip(".")
        self.windows.setdefault(name, []).append(Window(seconds, joules, why))


def joules_of(windows: Sequence[Window], told: str = "by a counter") -> Known:
    """The joules of all ``windows``, with Student's 95 % interval of the mean over windows where there are three or
    more. Not measured where a window has none, or is shorter than a counter needs."""
    failed = next((each for each in windows if each.joules is None), None)
    if failed is not None:
        return unknown(failed.why)
    if not windows:
        return unknown("no window was measured")
    shortest = min(each.seconds for each in windows)
    if shortest < WINDOW_SECONDS:
        return unknown(
            f"a window of {shortest:.1f} s is too short, a counter needs {WINDOW_SECONDS:g} s; ask for more requests, "
            "or for fewer turns"
        )
    seconds = sum(each.seconds for each in windows)
    watts = [(each.joules or 0.0) / each.seconds for each in windows]
    total = sum(each.joules or 0.0 for each in windows)
    how = f"{told}; {len(windows)} windows, {seconds:.0f} s"
    if len(windows) < 3:
        return Known(total, "measured", how)
    mean = sum(watts) / len(watts)
    error = math.sqrt(sum((each - mean) ** 2 for each in watts) / (len(watts) - 1) / len(watts))
    reach = seconds * half_interval(error, len(watts))
    return Known(total, "measured", how, max(0.0, total - reach), total + reach)


def above_idle(windows: Sequence[Window], joules: Known, idle_watts: Known) -> Known:
    """What the ``windows`` took more than a machine that draws ``idle_watts``, of ``joules`` in all."""
    if joules.value is None or idle_watts.value is None:
        return unknown(joules.how if joules.value is None else idle_watts.how)
    idle = idle_watts.value * sum(each.seconds for each in windows)
    if joules.value <= idle:
        return unknown("the windows took no more than the idle machine")
    low, high = (None if each is None else max(0.0, each - idle) for each in (joules.low, joules.high))
    return Known(joules.value - idle, joules.status, f"{joules.how}, less {idle_watts.value:.3g} W idle", low, high)
