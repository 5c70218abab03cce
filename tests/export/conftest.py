"""Checkpoints that every target's tests share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from prunekit.models.source import Source, resolve
from tests.support.export_models import save_uneven

Uneven = Callable[..., Source]


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Uneven:
    """``uneven("qwen3", tied=True)``: a tiny pruned checkpoint, made once a session for the same arguments."""

    @cache
    def make(model_type: str = "llama", **fields: object) -> Source:
        folder: Path = tmp_path_factory.mktemp(model_type) / "pruned"
        renamed = {{"tied": "tie_word_embeddings"}.get(name, name): value for name, value in fields.items()}
        return resolve(str(save_uneven(folder, model_type, **renamed)))

    return make
