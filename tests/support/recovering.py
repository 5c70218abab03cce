"""What a recovery from folder to folder needs, tiny: a dense model, a pruned one, text; and a short training of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prunekit import prune
from prunekit.pipeline import recover
from prunekit.plan.recipe import Recipe
from prunekit.recovery.training.loop import Training
from prunekit.recovery.training.run import Recovered
from tests.support.command import SENTENCE
from tests.support.tiny import tiny_model
from tests.support.tiny_text import tiny_tokenizer

SETTINGS = {"text_length": 16, "text_held_out": 4, "batch_tokens": 64, "learning_rate": 1e-3}


def make_places(root: Path, **fields: Any) -> Path:
    """``root`` with the folders dense and small, and text.txt."""
    tiny_model("llama", tied=True, **fields).save_pretrained(root / "dense")
    tiny_tokenizer().save_pretrained(root / "dense")
    recipe = Recipe.of("adapt-pruner", ffn_multiple=1, sequences=4, length=16)
    prune(str(root / "dense"), root / "small", blocks=0.7, recipe=recipe)
    (root / "text.txt").write_text("\n\n".join(f"{number} {SENTENCE}" for number in range(60)), encoding="utf-8")
    return root


def recover_tiny(places: Path, out: Path, **given: Any) -> Recovered:
    """Eight steps of 64 tokens of the pruned model, or ``model``, but for what is ``given``; its settings come on top
    of :data:`SETTINGS`."""
    model = given.pop("model", places / "small")
    options = {"text": str(places / "text.txt"), "tokens": 64 * 8, "device": "cpu", "dtype": "float32", **given}
    options["settings"] = {**SETTINGS, **options.get("settings", {})}
    return recover(str(model), str(places / "dense"), out, **options)


class Killed(BaseException):
    """What ends a training as a kill would: nothing catches it."""


@contextmanager
def killed_before(step: int) -> Iterator[None]:
    """A training in the block ends before ``step``, as if it were killed."""
    original = Training._step

    def stopping(self: Training) -> dict[str, float]:
        if self.standing.step == step:
            raise Killed
        return original(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "_step", stopping)
        yield
