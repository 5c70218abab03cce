"""Whether a run tells that other programs want the CPUs it counts on."""

from __future__ import annotations

import pytest
import torch

from prunekit.utils.measuring import crowd
from prunekit.utils.measuring.crowd import crowded, watched
from prunekit.utils.measuring.load import Counters, Load


def load(others: float | None, cpus: int = 2, seconds: float = 10.0) -> Load:
    return Load(seconds, cpus, others, 0.0, 1.0, 0, None, None)


def test_threads_that_want_busy_cpus() -> None:
    assert crowded(load(1.0), 2) == (
        "Other programs kept 1.0 of 2 CPUs busy meanwhile, and the 2 threads of this one wait for each other. Stop "
        "them, or start it again with OMP_NUM_THREADS=1, which may be faster."
    )
    assert "OMP_NUM_THREADS=11," in (crowded(load(5.0, 16), 16) or "")
    assert "OMP_NUM_THREADS=1," in (crowded(load(2.0), 2) or ""), "one thread at least"


@pytest.mark.parametrize(
    ("others", "threads", "seconds"),
    [(0.1, 2, 10.0), (1.0, 1, 10.0), (None, 2, 10.0), (2.0, 2, 0.3), (0.4, 2, 10.0)],
    ids=["quiet", "one thread", "the system does not tell", "too short", "less than half of one"],
)
def test_nothing_is_said(others: float | None, threads: int, seconds: float) -> None:
    assert crowded(load(others, seconds=seconds), threads) is None


def test_what_the_machine_did_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 CPU seconds of two CPUs in ten seconds, half of them this program's."""
    read = [Counters(0.0, 2, 100.0, 0.0, 50.0, 0, None), Counters(10.0, 2, 120.0, 0.0, 60.0, 0, None)] * 2
    monkeypatch.setattr(crowd, "read_counters", lambda: read.pop(0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    made, said = watched(lambda: 7, torch.device("cpu"))
    assert made == 7 and said is not None and "1.0 of 2 CPUs" in said
    assert watched(lambda: 7, torch.device("meta")) == (7, None)
