"""Kernels have no backward pass: what runs through them says so, where PyTorch would leave gradients out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from prunekit.errors import PrunekitError

_SAYS = (
    "An optimised model can't be trained: its kernels have no backward pass. Call prunekit.kernels.restore(model), or "
    "load the model again, and train that."
)


class _NoBackward(torch.autograd.Function):
    """The first of its arguments, as something that was computed from the others."""

    @staticmethod
    def forward(ctx: Any, made: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> Any:  # type: ignore[override]
        raise PrunekitError(_SAYS)


def check_training(training: bool, sources: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Those of ``sources``, what a module computes from, that ask for a gradient. Raises PrunekitError where some do
    and the module is in training mode."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return ()
    asked = tuple(source for source in sources if source.requires_grad)
    if asked and training:
        raise PrunekitError(_SAYS)
    return asked


def without_backward(made: torch.Tensor, asked: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """``made`` from ``asked``; a backward pass through it raises PrunekitError."""
    if not asked:
        return made
    out: torch.Tensor = _NoBackward.apply(made.detach(), *asked)
    return out
