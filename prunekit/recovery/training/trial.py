"""Three steps that change nothing: how fast the training will be, what it takes, and what fits into memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from prunekit.data.packed.windows import Windows
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.teachers.online import Teacher
from prunekit.recovery.training.gradient import Gradient
from prunekit.recovery.training.progress import Standing
from prunekit.recovery.training.student import Student
from prunekit.utils.machine import synchronize
from prunekit.utils.measuring.resident import peak_bytes
from prunekit.utils.process.ranks import shared

_STEPS = 3


@dataclass(frozen=True)
class Trial:
    """The median of the trial's steps, without the optimizer, which takes a few per cent more. ``memory`` is the most
    that this process, or the GPU, held; None where the system doesn't tell."""

    tokens_per_second: float
    memory: int | None


def run_trial(
    student: Student,
    teacher: Teacher,
    config: TrainingConfig,
    standing: Standing,
    length: int,
    sequences: int,
    note: Callable[[str], None] = lambda text: None,
) -> Trial:
    """Compute the gradients of steps of ``sequences`` random windows of ``length`` tokens, and forget them.
    ``standing`` is told where fewer sequences at a time fit into memory."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = student.model.config.vocab_size
    gradient = Gradient(student, teacher, config.ce_share, standing, note)
    seconds = []
    for _ in range(_STEPS):
        ids = torch.randint(0, vocabulary, (sequences, length), generator=generator)
        began = time.perf_counter()
        gradient.put(Windows(ids, torch.zeros_like(ids)), sequences)
        synchronize(student.device)
        seconds.append(time.perf_counter() - began)
        student.clear()
    on_gpu = student.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated(student.device) if on_gpu else peak_bytes()
    return Trial(shared(sequences * length / median(seconds)), memory)
