"""Checkpoints that every target's tests share."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

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


@pytest.fixture(scope="session", autouse=True)
def _traces_are_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch.onnx takes ten seconds to trace a tiny model, and several targets want the same graph: each process finds
    what another has traced."""
    pytest.importorskip("onnx_ir")
    import onnx_ir

    from prunekit.export.formats.onnx import write

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    trace = write._traced

    def shared(job: Any, config: Any, model: Any, plain: bool, logits: str) -> Any:
        key = hashlib.sha256(repr((model.config.to_json_string(), plain, logits == "all")).encode())
        for name, tensor in sorted(model.state_dict().items()):
            key.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            key.update(tensor.contiguous().view(torch.uint8).numpy().data)
        file = folder / key.hexdigest() / "model.onnx"
        if not file.exists():
            made = trace(job, config, model, plain, logits)
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                onnx_ir.save(made, f"{temporary}/model.onnx")
                with suppress(FileExistsError, OSError):
                    Path(temporary).rename(file.parent)
                    Path(temporary).mkdir()
        return onnx_ir.load(file)

    write._traced = shared
    yield
    write._traced = trace
