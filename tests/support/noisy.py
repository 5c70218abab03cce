"""A tiny dense model and copies of it that are farther and farther away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunekit.models.source import load_model, resolve
from tests.support.command import save_tiny
from tests.support.tiny_text import tiny_tokenizer


def save_noisy(root: Path, **sizes: float) -> Any:
    """Save "dense", and a model for each of ``sizes`` by its name, with so much of one noise added to a matrix, to what
    the one before has. Returns the last model."""
    save_tiny(root / "dense", layers=2, max_position_embeddings=512)
    model = load_model(resolve(str(root / "dense")), device="cpu")
    weight = noisy_weight(model)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    for name, size in sizes.items():
        with torch.no_grad():
            weight += size * noise
        save_beside_tokenizer(model, root / name)
    return model


def noisy_weight(model: Any) -> torch.Tensor:
    """The matrix that :func:`save_noisy` adds to."""
    weight: torch.Tensor = model.get_submodule("model.layers")[1].mlp.down_proj.weight
    return weight


def save_beside_tokenizer(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
