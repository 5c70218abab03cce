"""A tiny dense model, a pruned one and text in a folder, and a short recovery of the one toward the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit import prune
from prunekit.pipeline import recover
from prunekit.plan.recipe import Recipe
from tests.support.command import SENTENCE, save_tiny

SETTINGS = {"text_length": 16, "text_held_out": 4, "batch_tokens": 64, "learning_rate": 1e-3}


def save_places(root: Path) -> Path:
    """Make "dense", "small" and "text.txt" in ``root``."""
    save_tiny(root / "dense", tied=True)
    recipe = Recipe.of("adapt-pruner", ffn_multiple=1, sequences=4, length=16)
    prune(str(root / "dense"), root / "small", blocks=0.7, recipe=recipe)
    (root / "text.txt").write_text("\n\n".join(f"{number} {SENTENCE}" for number in range(60)), encoding="utf-8")
    return root


def recover_tiny(places: Path, out: Path, **given: Any) -> Any:
    """Eight steps of 64 tokens, unless ``given`` say otherwise."""
    options: dict[str, Any] = {"text": str(places / "text.txt"), "tokens": 64 * 8, "device": "cpu", "dtype": "float32"}
    options |= {**given, "settings": {**SETTINGS, **given.get("settings", {})}}
    return recover(str(places / "small"), str(places / "dense"), out, **options)
