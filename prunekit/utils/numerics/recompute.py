"""Activations that are computed a second time in the backward pass instead of being kept, where memory is short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.utils.checkpoint

if TYPE_CHECKING:
    from torch import nn

# What transformers' GradientCheckpointingLayer reads.
_FIELDS = ("gradient_checkpointing", "_gradient_checkpointing_func")


@contextmanager
def recomputing(layers: Iterable[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Each decoder layer of ``layers`` keeps its input alone, inside, where that is ``wanted``; afterwards each is as
    it was. The model's own switch would forget how a caller had set it, and is renamed between transformers versions.
    """
    if not wanted:
        yield
        return
    layers = list(layers)
    before = [
        ({name: vars(layer)[name] for name in _FIELDS if name in vars(layer)}, layer.training) for layer in layers
    ]
    again = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    for layer in layers:
        vars(layer).update(zip(_FIELDS, (True, again), strict=True))
        # A decoder layer checkpoints itself in training mode only; what is inside it stays in eval mode (dropout).
        layer.training = True
    try:
        yield
    finally:
        for layer, (fields, training) in zip(layers, before, strict=True):
            for name in _FIELDS:
                vars(layer).pop(name, None)
            vars(layer).update(fields)
            layer.training = training


def free_bytes(device: torch.device) -> int:
    """Memory that is free on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)
