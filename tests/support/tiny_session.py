"""A tiny model being planned, and what tests of that have in common."""

from __future__ import annotations

from typing import Any

import torch

from prunekit.models.families import FAMILIES
from prunekit.pruning.allocation.session import Session


def nothing(*args: Any, **kwargs: Any) -> None:
    """An ``advance`` that shows no progress."""


def tiny_session(model: Any, ids: torch.Tensor, **given: Any) -> Session:
    """A session of ``model`` on the text ``ids`` [N, L]."""
    return Session(
        model,
        FAMILIES[model.config.model_type],
        lambda step: ids,
        importance="fisher",
        layer_importance="cosine",
        batch_size=8,
        **given,
    )


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits
