"""Joules a token: by Zeus where there is a counter, else the reason why not, or estimated from the user's watts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import joules_per_token
from prunekit.utils.advance import Advance, untold
from prunekit.utils.provenance import install_extra
from prunekit.utils.quiet import reason
from prunekit.utils.timing import Clock, order

# Counters move every 10 to 100 ms, and a load takes seconds to become steady: no shorter windows than these.
IDLE_SECONDS, WINDOW_SECONDS, WINDOWS = 30.0, 10.0, 3
_POWERCAP = Path("/sys/class/powercap")
Status = Literal["measured", "not measured", "estimated"]


@dataclass(frozen=True)
class Spent:
    """Of one model: ``joules`` in ``seconds`` in which ``tokens`` output tokens were made and their prompts read, and
    the same a token; ``above_idle`` is what a token took more than an idle machine (None where that is not known)."""

    joules: float
    seconds: float
    tokens: float
    joules_per_token: float
    above_idle: float | None


@dataclass(frozen=True)
class Energy:
    """What both models took at one batch size. ``why`` says why it was not measured; ``method`` and ``scope`` what the
    figures are of. Figures of two methods or scopes are not to be compared."""

    status: Status
    batch: int
    why: str | None = None
    method: str | None = None
    scope: str | None = None
    idle_watts: float | None = None
    window_s: float | None = None
    n_windows: int | None = None
    dense: Spent | None = None
    pruned: Spent | None = None

    @property
    def ratio(self) -> float | None:
        """Joules a token, pruned/dense."""
        if self.dense is None or self.pruned is None:
            return None
        return self.pruned.joules_per_token / self.dense.joules_per_token

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "ratio": self.ratio}


class Sensor(Protocol):
    """A counter of energy: ``method`` is what reads it, ``scope`` what it counts."""

    method: str
    scope: str

    def begin(self) -> None:
        """A window begins."""

    def end(self) -> float:
        """It ends. Returns the joules in it. Raises PrunekitError where the counter can't be read."""


class ZeusSensor:
    """Zeus's monitor of GPU ``gpu``, or (None) of the CPU packages or the rails of a system on a chip.

    Raises PrunekitError, with a clause that says why, where there is no such counter.
    """

    method = "zeus"

    def __init__(self, gpu: int | None = None):
        if find_spec("zeus") is None:
            raise PrunekitError(f"zeus is not installed; run `{install_extra('energy')}`")
        try:
            from zeus.monitor import ZeusMonitor

            # Nothing is approximated: a counter that does not move is told, not replaced.
            self._monitor: Any = ZeusMonitor(
                gpu_indices=[] if gpu is None else [gpu],
                cpu_indices=None if gpu is None else [],
                approx_instant_energy=False,
            )
        except Exception as error:  # of NVML, of MIG devices, of drivers: types of their own
            raise PrunekitError(_explained(error)) from None
        self._gpu = gpu
        if gpu is not None:
            self.scope = "gpu board"
        elif self._monitor.cpu_indices:
            self.scope = "cpu package, whole socket"
        elif getattr(self._monitor, "soc_is_present", False):
            self.scope = "soc rail"
        else:
            raise PrunekitError(_no_counter())

    def begin(self) -> None:
        try:
            self._monitor.begin_window("prunekit")
        except Exception as error:
            raise PrunekitError(_explained(error)) from None

    def end(self) -> float:
        try:
            made = self._monitor.end_window("prunekit")
        except Exception as error:
            raise PrunekitError(_explained(error)) from None
        if self._gpu is not None:
            return float(sum(made.gpu_energy.values()))
        if self.scope == "soc rail":
            return _of_chip(made.soc_energy)
        return float(sum((made.cpu_energy or {}).values()))


def measure_energy(
    sensor: Sensor,
    run: Callable[[int], int],
    batch: int,
    *,
    now: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    advance: Advance = untold,
) -> Energy:
    """Joules of both models: the machine idle for 30 s, then windows of at least 10 s, three a model, A B B A A B.
    ``run(0)`` answers a batch with the dense model and ``run(1)`` with the pruned one; both return how many output
    tokens they made. ``advance`` is told of the seconds that went by, of about :func:`expected_seconds`. Where the
    counter fails, stands still or was reset, nothing is measured and ``why`` tells."""
    try:
        begin = told = now()
        sensor.begin()
        sleep(IDLE_SECONDS)
        idle_watts = moved(sensor.end()) / (now() - begin)
        joules, seconds, tokens = [0.0, 0.0], [0.0, 0.0], [0, 0]
        for index in order(WINDOWS):
            advance(now() - told)
            told = now()
            # Caches and clocks of this model, not of the other.
            run(index)
            begin = now()
            sensor.begin()
            while now() - begin < WINDOW_SECONDS:
                tokens[index] += run(index)
            joules[index] += moved(sensor.end())
            seconds[index] += now() - begin
        advance(now() - told)
    except PrunekitError as error:
        return Energy("not measured", batch, str(error).rstrip("."))
    dense, pruned = (
        Spent(
            each,
            spent,
            count,
            joules_per_token(each, count),
            (each - idle_watts * spent) / count,
        )
        for each, spent, count in zip(joules, seconds, tokens, strict=True)
    )
    return Energy(
        "measured", batch, None, sensor.method, sensor.scope, idle_watts, WINDOW_SECONDS, WINDOWS, dense, pruned
    )


def expected_seconds(seconds: tuple[float, float] | None = None) -> float:
    """About how long :func:`measure_energy` takes, where one run of each model takes so many ``seconds`` (None: next to
    none): in a window begins none that is not wholly made, and one goes before it."""
    runs = seconds or (0.0, 0.0)
    windows = (run + (max(1, math.ceil(WINDOW_SECONDS / run)) * run if run else WINDOW_SECONDS) for run in runs)
    return IDLE_SECONDS + WINDOWS * sum(windows)


def estimated_energy(watts: float, batch: int, rates: tuple[float, float], why: str | None = None) -> Energy:
    """What a machine that draws ``watts`` would take at ``rates``, output tokens a second of the dense model and of the
    pruned one: an assumption of the user's. ``why`` says why it was not measured, where that was tried."""
    if not (math.isfinite(watts) and 0 < watts <= 1e6):
        raise PrunekitError(f"The watts that are assumed must be above 0 to a million, got {watts!r}.")
    dense, pruned = (Spent(watts, 1.0, rate, watts / rate, None) for rate in rates)
    return Energy("estimated", batch, why, f"{watts:g} W were assumed", "as assumed", None, None, None, dense, pruned)


def open_sensor(device: str) -> Sensor:
    """The counter of a device such as ``cpu`` or ``cuda:1``. Raises PrunekitError, with a clause that says why, where
    there is none."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return ZeusSensor(int(index or 0))
    if kind != "cpu":
        raise PrunekitError(f"no counter of {kind} is known")
    return ZeusSensor()


def _of_chip(made: Any) -> float:
    """Joules that a system on a chip tells: a Jetson's total, or what Apple's processors tell of their parts."""
    total = getattr(made, "total_energy_mj", None)
    if total is None:
        parts = [getattr(made, name, None) for name in ("cpu_total_mj", "gpu_mj", "dram_mj")]
        if parts[0] is None:
            raise PrunekitError("this system on a chip tells no total energy")
        total = sum(each for each in parts if each is not None)
    return float(total) / 1000


def moved(joules: float) -> float:
    """What a counter said of a window. Raises PrunekitError, with a clause, where it was reset or stood still."""
    if not math.isfinite(joules) or joules < 0:
        raise PrunekitError("the counter was reset or wrapped while it was read")
    if joules == 0:
        raise PrunekitError("the counter did not move")
    return joules


def _no_counter() -> str:
    """Why Zeus found nothing to read on a CPU."""
    zones = sorted(_POWERCAP.glob("intel-rapl:*")) if _POWERCAP.is_dir() else []
    if not zones:
        return (
            f"this machine has no sensor: {_POWERCAP} names no RAPL zone, as in virtual machines and on many ARM "
            "processors"
        )
    try:
        (zones[0] / "energy_uj").read_text()
    except OSError as error:
        return f"{zones[0].name}/energy_uj can't be read ({error.strerror or error}); it needs root"
    return "Zeus found no counter that it can read"


def _explained(error: Exception) -> str:
    said = reason(error).rstrip(".")
    if "MIG" in said:
        return f"MIG devices have no energy counter ({said})"
    return f"Zeus can't read the counter ({said})"
