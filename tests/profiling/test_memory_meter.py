"""The peak of a GPU's memory, on counts known beforehand."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prunekit.cli.memory_probe import probe
from prunekit.profiling import memory
from prunekit.profiling.compare import BenchConfig
from prunekit.profiling.memory import MemoryRun, measure_peak
from prunekit.utils.memory_meter import DeviceMemory, Resident
from prunekit.utils.process.child import Ended


def test_a_peak_between_two_looks_is_seen():
    now = [100]
    meter = DeviceMemory("cuda:0", lambda: now[0], every=0.001)
    meter.start()
    now[0] = 900  # while it loads
    now[0] = 500
    meter.reset()
    now[0] = 700
    time.sleep(0.1)
    now[0] = 600
    assert meter.peak() == 600
    # Nobody looks any more.
    now[0] = 5000
    time.sleep(0.02)
    assert meter._most == 700


def test_what_is_taken_at_the_end_counts():
    counts: Iterator[int] = iter([7, 10, 50, 90])
    meter = DeviceMemory("cuda:0", lambda: next(counts), every=60)
    meter.start()
    meter.reset()
    assert meter.peak() == 80


def test_resident_memory():
    meter = Resident()
    meter.start()
    meter.reset()
    held = b"\0" * 50_000_000
    assert held[0] == 0
    peak = meter.peak()
    assert peak is None or peak > 40_000_000


def test_the_probe_opens_an_export_where_it_is_asked_to(tmp_path, monkeypatch):
    """With a device's memory: that the model is opened between the two looks, and run before the last."""
    from prunekit.cli import memory_probe
    from prunekit.export import export as exporting

    happened = []

    class Meter:
        def __init__(self, device):
            happened.append(device)

        def start(self):
            happened.append("start")

        def reset(self):
            happened.append("reset")

        def peak(self):
            happened.append("peak")
            return 42

    class Runner:
        vocab_size = 16

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            happened.append("close")

        def greedy(self, ids, tokens):
            happened.append((ids.shape, tokens))

    def opened(self, threads, trust_remote_code, device):
        happened.append(("open", threads, device))
        return Runner()

    monkeypatch.setattr(memory_probe, "DeviceMemory", Meter)
    monkeypatch.setattr(memory_probe, "replace", lambda export, seen: export)
    monkeypatch.setattr(exporting, "read_export", lambda path, own: type("Export", (), {"open": opened})())
    run = MemoryRun("out", "auto", "onnx", 2, 8, 3, None, True, None, False, "cuda:1")
    assert probe(run) == 42
    assert happened == ["cuda:1", "start", ("open", None, "cuda:1"), "reset", ((2, 8), 4), "peak", "close"]


def test_the_device_reaches_the_other_process(monkeypatch):
    sent = []

    def run_python(module, arguments):
        sent.append((module, arguments[0]))
        return Ended(0, "7", "", None)

    monkeypatch.setattr(memory, "run_python", run_python)
    assert measure_peak("out", BenchConfig(), runtime="onnx", device="cuda:0") == 7
    assert '"device": "cuda:0"' in sent[0][1] and sent[0][0] == "prunekit.cli.memory_probe"


def test_a_checkpoint_is_still_measured_on_a_cpu(tmp_path):
    from tests.support.command import save_tiny

    folder = save_tiny(tmp_path / "model", layers=2, intermediate_size=65536)
    peak = measure_peak(str(folder), BenchConfig(prompt=4, tokens=2))
    # Where the system tells, at least the FFNs that a step reads.
    assert peak is None or 0.5 * (2 * 3 * 64 * 65536 * 4) < peak < 2**31
