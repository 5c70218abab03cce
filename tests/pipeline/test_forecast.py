"""What a run will take, by rates that are given here: how it grows, what is said of it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.pipeline.forecast import room as rooms
from prunekit.pipeline.forecast.room import Room, check_memory, room
from prunekit.pipeline.forecast.tell import sentence_of
from prunekit.pipeline.forecast.trial import Rates, measure
from prunekit.pipeline.forecast.work import Text, Work
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.utils.phases import titles
from tests.support.command import save_tiny
from tests.support.tiny import one_thread

SMOLLM2 = ModelShape(576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30)
LLAMA_8B = ModelShape(4096, 128, 128256, False, (LayerShape(32, 8, 14336),) * 32)
QUICK = Text(256, 8, (32,), curves=8192, fisher=4096, scale=1024, refit=16384)
# A thread of 50 billion operations a second, in each of these.
RATES = Rates(1.4e-4, 1.4e-4, 2.3e-8, 4.6e-8, 3e-3, 2e-6, 4e-11, 1.7e-10)


def test_seconds_grow_with_the_work() -> None:
    work = Work(SMOLLM2, 0.8, QUICK, 450_000_000)
    found = work.seconds(RATES)
    assert all(seconds >= 0 for seconds in found.values())
    # 8,192 tokens through 30 layers, moments and eliminations, and 60 passes from each layer on.
    assert found[titles.FISHER] == pytest.approx(4096 * (30 * 2.8e-4 + 49152 * 4.6e-8 + 60 * 576**2 * 4e-11), rel=0.05)
    twice = replace(work, text=replace(QUICK, refit=2 * QUICK.refit, fisher=2 * QUICK.fisher)).seconds(RATES)
    assert twice[titles.FISHER] == pytest.approx(2 * found[titles.FISHER])
    assert 1.8 < twice[titles.REFIT] / found[titles.REFIT] <= 2
    assert work.seconds(RATES, ranks=2)[titles.CURVES] == pytest.approx(found[titles.CURVES] / 2)
    # What is kept is not written again, and what is not asked for takes nothing.
    assert replace(work, text=replace(QUICK, unwritten=())).seconds(RATES)[titles.OWN_TEXT] == 0
    assert found[titles.RESCALING] == found[titles.SCORING] == 0


def test_memory_of_large_models_is_mostly_weights() -> None:
    small = room(Work(SMOLLM2, 0.8, QUICK, 450_000_000), 4, fast=True)
    # 2.8 GB were seen at most.
    assert 2.2e9 < small.memory < 3.6e9 and small.least < 0.7e9
    large = room(Work(LLAMA_8B, 0.8, QUICK, 13_000_000_000), 2, fast=False)
    assert 16e9 < large.least < large.memory < 60e9
    assert large.disk > 13e9


def test_too_little_memory_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    needed, cpu = Room(memory=20e9, least=16e9, disk=1e9), torch.device("cpu")
    for there, raises in ((64e9, False), (18e9, False), (8e9, True)):
        monkeypatch.setattr(rooms, "whole_memory", lambda device, there=there: there)
        if raises:
            with pytest.raises(PrunekitError, match=r"take 16 GB of memory, and cpu has 8\.0 GB in all"):
                check_memory(needed, cpu)
        else:
            assert (check_memory(needed, cpu) is None) == (there > 20e9)


def test_a_machine_tells_its_memory() -> None:
    assert 1e8 < rooms.whole_memory(torch.device("cpu")) < 1e15


def test_the_sentence() -> None:
    needed = Room(memory=3.1e9, least=1e9, disk=0.6e9)
    said = sentence_of(540, needed)
    assert said.startswith("This takes about 9 minutes, 3.1 GB of memory and 600 MB of disk (a prediction")
    assert "less time where an earlier run" in sentence_of(45, needed, kept=True)
    assert sentence_of(45, needed).startswith("This takes about 45 seconds")
    assert sentence_of(9 * 3600, needed).startswith("This takes about 9.0 hours")


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "olmo2"])
def test_every_family_can_be_tried(model_type: str, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "model", model_type)))
    with one_thread():
        options: dict[str, Any] = {"dtype": source.dtype, "device": torch.device("cpu"), "length": 16, "together": 2}
        rates = measure(source, **options, needs="weight_gradients")
    assert all(0 < rate < 1 for name, rate in vars(rates).items() if name != "backward")
