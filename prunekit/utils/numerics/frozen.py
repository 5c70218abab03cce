"""A model whose weights gather no gradients for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of ``model`` asks for a gradient inside; afterwards each asks as it did before."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, before in asked:
            parameter.requires_grad_(before)
