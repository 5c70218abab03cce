"""How much memory and disk planning and pruning take, by the shape of the model alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.pipeline.forecast.work import Work
from prunekit.pruning.importance.base import BACKWARD
from prunekit.utils.phases.words import size

if TYPE_CHECKING:
    import torch

    from prunekit.pipeline.forecast.lesson import Lesson

# Logits that are held at a time with what becomes of them, a shard of the checkpoint, and what Python and PyTorch take.
_HEAD, _SHARD, PROGRAM = 160e6, 2 * 2**30, 0.5e9
# Of what autograd would keep if weights had gradients.
_KEPT = 0.8
_DOUBLE = 8


@dataclass(frozen=True)
class Room:
    """Bytes: ``memory`` at most, of which the weights and what must lie beside them at once are ``least``; ``disk`` of
    the cache and the output."""

    memory: float
    least: float
    disk: float


def room(work: Work, itemsize: int, *, fast: bool) -> Room:
    """What ``work`` takes in a dtype of so many bytes; where products are ``fast``, text is sampled from a copy of the
    weights in bfloat16."""
    shape, text = work.dense, work.text
    weights = float(shape.parameters * itemsize)
    layers, width = shape.num_hidden_layers, shape.hidden_size
    sums = 8.0 * layers * width**2 if text.fisher else 0.0
    widest = max(max(layer.intermediate_size, layer.num_attention_heads * shape.head_dim) for layer in shape.layers)
    # Float64: what is solved, a copy of it and two more on the way.
    solved = _DOUBLE * (4.0 * widest**2 + 4.0 * widest * width) if text.curves or text.refit else 0.0
    batch = text.batch_size * text.length
    back = 4.0 * _KEPT * shape.activation_numbers_per_token()
    phases = [0.0]
    if text.unwritten:
        together = max(text.unwritten)
        heads = sum(layer.num_key_value_heads for layer in shape.layers)
        cache = 2.0 * heads * shape.head_dim * text.length * together * (2 if fast else itemsize)
        phases.append((2.0 * shape.parameters if fast else 0.0) + cache + 16.0 * together * shape.vocab_size)
    if text.fisher:
        phases.append(sums + back * batch / 2 + _HEAD)
    if text.curves:
        stream = width * itemsize * (text.curves + text.scale * (layers + 1.0))
        phases.append(sums + stream + solved + _HEAD)
    if text.refit:
        phases.append(2.0 * width * itemsize * text.refit + solved)
    if text.rescaling:
        phases.append(width * itemsize * float(text.rescaling) + back * 4 * text.length + _HEAD)
    if text.passes:
        phases.append(4.0 * min(batch, text.scored) * shape.activation_numbers_per_token() * (text.needs in BACKWARD))
    if text.turned:
        # The sum, a copy of it, the axes and what finds them; states of a batch.
        phases.append(4.0 * _DOUBLE * width**2 + (_DOUBLE + 4.0) * width * batch + 2.0 * batch * widest * itemsize)
    phases.append(min(_SHARD, work.stored))
    own = 8.0 * sum(text.unwritten) * text.length
    return Room(PROGRAM + weights + max(phases), weights + sums, own + sums + work.stored)


def training_room(lesson: Lesson, itemsize: int, step_tokens: int, ranks: int = 1) -> Room:
    """What ``lesson`` takes of a process, one of so many ``ranks``: the trained weights in float32, with the gradient
    and two moments of those that move, beside the dense model in a dtype of so many bytes."""
    shape = lesson.shape
    held = (4.0 * lesson.left + 12.0 * lesson.moving + float(shape.parameters) * itemsize) / ranks
    step = 4.0 * min(step_tokens / ranks, lesson.asked.text.length) * shape.activation_numbers_per_token() + _HEAD
    # Two checkpoints while a third is written, and the pruned model that is trained.
    kept = 3 * (4.0 * lesson.left + 8.0 * lesson.moving) + 4.0 * lesson.left
    return Room(PROGRAM + held + step, held, kept)


def whole_memory(device: torch.device) -> float:
    """All memory that a process may have there, in bytes, what others hold included; of a CPU with the swap space."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[1])
    import psutil

    most = float(psutil.virtual_memory().total + psutil.swap_memory().total)
    return min([most, *_limits()])


def _limits() -> list[float]:
    """What a container allows."""
    found = []
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # "max"
            continue
    return found


# What may help where there is too little memory for a pruning, and for a training.
PRUNE_LESS = (
    "Take a smaller dtype (--dtype bfloat16) or a machine with more; --method magnitude needs one layer at a time"
)
TRAIN_LESS = "Train adapters alone (--set lora=16), leave out --recover, or take a machine with more"


def check_memory(needed: Room, device: torch.device, advice: str = PRUNE_LESS) -> str | None:
    """A sentence where there may be too little memory, with ``advice``. Raises PrunekitError where there is certainly
    too little."""
    there = whole_memory(device)
    if needed.least > there:
        raise PrunekitError(
            f"The weights and what has to lie beside them take {size(needed.least)} of memory, and {device} has "
            f"{size(there)} in all, so this can't be done there. {advice}."
        )
    if needed.memory > there:
        return (
            f"About {size(needed.memory)} of memory are needed, by a prediction, and {device} has {size(there)} in "
            f"all: this will hardly come to its end. {advice}."
        )
    return None
