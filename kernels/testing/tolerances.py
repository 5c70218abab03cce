"""How ops are checked, by tests and by the GPU check: what counts as close, and memory that shows what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Relative RMS error against float64.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element that no program wrote can't pass for a result."""
    places = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))
    before = [getattr(owner, name) for owner, name in places]

    def poisoned(make: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return wrapped

    for (owner, name), make in zip(places, before, strict=True):
        setattr(owner, name, poisoned(make))
    try:
        yield
    finally:
        for (owner, name), make in zip(places, before, strict=True):
            setattr(owner, name, make)
