"""Energy by a monitor of Zeus's interface, with counters that move, stand still, jump back, or may not be read."""

from __future__ import annotations

import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.profiling import energy as energy_module
from prunekit.profiling.bench_report import BenchConfig
from prunekit.profiling.energy import (
    IDLE_SECONDS,
    WINDOW_SECONDS,
    Energy,
    ZeusSensor,
    estimated_energy,
    expected_seconds,
    measure_energy,
    open_sensor,
)


class World:
    """A clock, a machine that draws 10 W idle, and models that draw 30 W and 20 W for two seconds a run."""

    def __init__(self) -> None:
        self.time, self.joules, self.order = 0.0, 0.0, []

    def pass_by(self, seconds: float, watts: float = 10.0) -> None:
        self.time += seconds
        self.joules += watts * seconds

    def run(self, index: int) -> int:
        self.order.append(index)
        self.pass_by(2.0, (30.0, 20.0)[index])
        return 8

    def measure(self, sensor: Any) -> Energy:
        return measure_energy(sensor, self.run, 4, now=lambda: self.time, sleep=self.pass_by)


class Counter:
    method, scope = "fake", "gpu board"

    def __init__(self, world: World, told=lambda joules: joules):
        self._world, self._told, self._before = world, told, 0.0

    def begin(self) -> None:
        self._before = self._world.joules

    def end(self) -> float:
        return self._told(self._world.joules - self._before)


def test_joules_a_token_gross_and_above_idle() -> None:
    world = World()
    made = world.measure(Counter(world))
    assert made.status == "measured" and made.idle_watts == pytest.approx(10.0)
    assert (made.n_windows, made.window_s, made.scope) == (3, WINDOW_SECONDS, "gpu board")
    assert made.dense is not None and made.pruned is not None
    # 60 J and 40 J for eight tokens, of which 20 J each are idle.
    assert made.dense.joules_per_token == pytest.approx(7.5) and made.dense.above_idle == pytest.approx(5.0)
    assert made.pruned.joules_per_token == pytest.approx(5.0) and made.pruned.above_idle == pytest.approx(2.5)
    assert made.ratio == pytest.approx(2 / 3) and made.to_dict()["ratio"] == made.ratio
    assert made.dense.seconds >= 3 * WINDOW_SECONDS and world.time > IDLE_SECONDS + 6 * WINDOW_SECONDS
    turns = [each for place, each in enumerate(world.order) if place == 0 or world.order[place - 1] != each]
    assert turns == [0, 1, 0, 1]  # A B B A A B


def test_how_long_it_takes_is_foreseen_and_told() -> None:
    world = World()
    steps: list[float] = []
    measure_energy(Counter(world), world.run, 4, now=lambda: world.time, sleep=world.pass_by, advance=steps.append)
    # The idle machine, then six windows of five runs of two seconds, with one run in front of each.
    assert steps == pytest.approx([30.0, *[12.0] * 6]) and sum(steps) == expected_seconds((2.0, 2.0)) == 102.0
    # Runs of 7 and of 40 seconds: two and one of them fill a window.
    assert expected_seconds((7.0, 40.0)) == 30 + 3 * (21 + 80)
    assert expected_seconds() == 90.0


def test_the_phase_has_an_estimate_from_its_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.profiling import compare
    from prunekit.utils.phases.run import Run, running
    from prunekit.utils.timing import compare as compared

    world, seen = World(), []
    ttft, tpot = (compared([seconds] * 6, [seconds] * 6, 1.0) for seconds in (1.0, 0.5))
    result = SimpleNamespace(batch=4, ttft=ttft, tpot=tpot)
    shape = SimpleNamespace(vocab_size=16)
    both = tuple(SimpleNamespace(shape=shape, runner=Runs(world, index)) for index in (0, 1))
    monkeypatch.setattr(compare, "open_sensor", lambda device: Counter(world))
    monkeypatch.setattr(compare, "measure_energy", partial(measure_energy, now=lambda: world.time, sleep=world.pass_by))
    watcher = SimpleNamespace(
        see=seen.append, **{name: lambda *given: None for name in ("begin", "tick", "say", "announce", "end")}
    )
    with running(Run([watcher], clock=lambda: world.time, memory=lambda: 1, ticking=False)):  # type: ignore[list-item]
        made = compare._energy(both, BenchConfig(tokens=2, energy=True), "cpu", (result,))  # type: ignore[arg-type]
    assert made is not None and made.status == "measured"
    lefts = [each.left for each in seen if each.what in ("begun", "step")]
    assert lefts == pytest.approx([102.0, 72.0, 60.0, 48.0, 36.0, 24.0, 12.0, 0.0], abs=1.0)


class Runs:
    """A runner of which only the time that it takes counts."""

    def __init__(self, world: World, index: int):
        self._world, self._index = world, index

    def greedy(self, ids: Any, tokens: int) -> None:
        self._world.run(self._index)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (lambda joules: 0.0, "the counter did not move"),
        (lambda joules: -joules, "the counter was reset or wrapped while it was read"),
        (lambda joules: float("nan"), "the counter was reset or wrapped while it was read"),
        (lambda joules: joules if joules < 310 else 0.0, None),
    ],
)
def test_a_counter_that_is_not_to_be_trusted(told, said) -> None:
    world = World()
    made = world.measure(Counter(world, told))
    if said is None:
        assert made.status == "measured"
    else:
        assert made == Energy("not measured", 4, said)


def test_a_counter_that_stops_in_the_middle() -> None:
    world = World()
    made = world.measure(Counter(world, lambda joules: joules if world.time < 50 else 0.0))
    assert made.status == "not measured" and made.why == "the counter did not move" and made.dense is None


@pytest.fixture
def zeus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package of Zeus's interface; ``told`` is what it makes of a window, ``error`` what it raises instead."""
    world = SimpleNamespace(told=None, cpus=[0], soc=False, error=None, asked=None, windows=[])

    class ZeusMonitor:
        def __init__(self, gpu_indices=None, cpu_indices=None, approx_instant_energy=False):
            if world.error is not None:
                raise world.error
            world.asked = (gpu_indices, cpu_indices, approx_instant_energy)
            self.cpu_indices = world.cpus if cpu_indices is None else cpu_indices
            self.soc_is_present = world.soc

        def begin_window(self, key):
            world.windows.append(key)

        def end_window(self, key):
            assert world.windows.pop() == key
            return world.told

    for name in ("zeus", "zeus.monitor"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["zeus.monitor"].ZeusMonitor = ZeusMonitor  # type: ignore[attr-defined]
    return world


def measured(sensor: ZeusSensor) -> float:
    sensor.begin()
    return sensor.end()


def test_zeus_on_a_gpu_and_on_a_cpu(zeus: SimpleNamespace) -> None:
    zeus.told = SimpleNamespace(gpu_energy={1: 12.5}, cpu_energy=None, soc_energy=None)
    sensor = open_sensor("cuda:1")
    assert measured(sensor) == 12.5 and sensor.scope == "gpu board" and zeus.asked == ([1], [], False)
    zeus.told = SimpleNamespace(gpu_energy={}, cpu_energy={0: 3.0, 1: 4.0}, soc_energy=None)
    zeus.cpus = [0, 1]
    sensor = open_sensor("cpu")
    assert measured(sensor) == 7.0 and sensor.scope == "cpu package, whole socket" and zeus.asked == ([], None, False)
    zeus.cpus, zeus.soc = [], True
    zeus.told = SimpleNamespace(gpu_energy={}, cpu_energy=None, soc_energy=SimpleNamespace(total_energy_mj=2500))
    sensor = open_sensor("cpu")
    assert measured(sensor) == 2.5 and sensor.scope == "soc rail"
    parts = SimpleNamespace(cpu_total_mj=1000, gpu_mj=500, dram_mj=None)
    zeus.told = SimpleNamespace(gpu_energy={}, cpu_energy=None, soc_energy=parts)
    assert measured(sensor) == 1.5
    zeus.told = SimpleNamespace(gpu_energy={}, cpu_energy=None, soc_energy=SimpleNamespace())
    with pytest.raises(PrunekitError, match="tells no total energy"):
        measured(sensor)


def test_why_it_is_not_measured(zeus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zeus.cpus = []
    monkeypatch.setattr(energy_module, "_POWERCAP", tmp_path / "none")
    with pytest.raises(PrunekitError, match=r"has no sensor: .* names no RAPL zone, as in virtual machines"):
        open_sensor("cpu")
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    monkeypatch.setattr(energy_module, "_POWERCAP", tmp_path)
    # A folder of that name stands for a file that may not be read, which root may read everywhere.
    (zone / "energy_uj").mkdir()
    with pytest.raises(PrunekitError, match=r"intel-rapl:0/energy_uj can't be read .*; it needs root"):
        open_sensor("cpu")
    zeus.error = ValueError("Invalid MIG device handle")
    with pytest.raises(PrunekitError, match="MIG devices have no energy counter"):
        open_sensor("cuda")
    zeus.error = RuntimeError("NVML: Driver Not Loaded.")
    with pytest.raises(PrunekitError, match=r"Zeus can't read the counter \(NVML: Driver Not Loaded\)"):
        open_sensor("cuda:0")
    with pytest.raises(PrunekitError, match="no counter of mps is known"):
        open_sensor("mps")
    monkeypatch.setattr(energy_module, "find_spec", lambda name: None)
    with pytest.raises(PrunekitError, match=r"zeus is not installed; run `pip install '\.\[energy\]'"):
        open_sensor("cpu")


def test_watts_that_are_assumed_are_an_estimate() -> None:
    made = estimated_energy(60.0, 1, (20.0, 30.0), "no counter")
    assert made.status == "estimated" and made.why == "no counter" and made.method == "60 W were assumed"
    assert made.dense is not None and made.pruned is not None
    assert (made.dense.joules_per_token, made.pruned.joules_per_token) == (3.0, 2.0)
    assert made.dense.above_idle is None and made.idle_watts is None
    for wrong in (0.0, -5.0, float("nan"), float("inf")):
        with pytest.raises(PrunekitError, match="watts that are assumed"):
            BenchConfig(assume_watts=wrong)
        with pytest.raises(PrunekitError, match="watts that are assumed"):
            estimated_energy(wrong, 1, (1.0, 1.0))
