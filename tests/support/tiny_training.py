"""A tiny pruned model in training, and text in memory in place of a packed one."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch

from prunekit.data.packed.windows import Windows
from prunekit.models.families import FAMILIES
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.teachers.online import OnlineTeacher
from prunekit.recovery.training.loop import Events, Training
from prunekit.recovery.training.lora import LoraStudent
from prunekit.recovery.training.optimizer import Optimizer
from prunekit.recovery.training.progress import Standing
from prunekit.recovery.training.schedule import Span
from prunekit.recovery.training.student import Student
from tests.support.tiny import VOCAB, random_plan, rebuilt_model, tiny_model

LENGTH = 16


class RandomText:
    """Seeded random windows: no two alike, and the same for the same number."""

    def __init__(self, length: int = LENGTH, held_out: int = 3):
        self._length = length
        self.held_out = self._made(range(1_000_000, 1_000_000 + held_out))

    def batch(self, first: int, count: int) -> Windows:
        return self._made(range(first, first + count))

    def _made(self, numbers: range) -> Windows:
        rows = [
            torch.randint(3, VOCAB, (self._length,), generator=torch.Generator().manual_seed(number))
            for number in numbers
        ]
        places = torch.arange(self._length).expand(len(rows), -1)
        return Windows(torch.stack(rows), (places >= self._length // 2).long())


def tiny_pair(model_type: str = "llama", **fields: Any) -> tuple[Any, Any]:
    """A dense model, and a copy of it that was pruned."""
    dense = tiny_model(model_type, **fields)
    return dense, rebuilt_model(dense, random_plan(FAMILIES[model_type].shape(dense.config)))


def tiny_student(model: Any, config: TrainingConfig | None = None) -> Student:
    config = config or TrainingConfig()
    return (LoraStudent if config.lora else Student)(model, config, nullcontext)


def tiny_teacher(model: Any, *, separate: bool = False) -> OnlineTeacher:
    return OnlineTeacher(model, nullcontext, separate=separate)


def tiny_training(
    dense: Any,
    pruned: Any,
    config: TrainingConfig | None = None,
    *,
    steps: int = 4,
    sequences: int = 4,
    micro_batch: int = 4,
    standing: Standing | None = None,
    events: Events | None = None,
) -> Training:
    """A training of a copy of ``pruned`` toward ``dense``."""
    config = config or TrainingConfig(learning_rate=1e-3)
    student = tiny_student(copy.deepcopy(pruned), config)
    return Training(
        student,
        tiny_teacher(dense, separate=config.documents == "separate"),
        RandomText(),  # type: ignore[arg-type]
        config,
        Optimizer(student.parameters, config),
        standing or Standing(micro_batch=micro_batch),
        span=Span(steps),
        sequences=sequences,
        events=events,
    )
