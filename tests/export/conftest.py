"""Checkpoints that every target's tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from prunekit.models.source import Source, resolve
from tests.support.export_models import save_uneven
from tests.support.run_folder import run_folder

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
    if find_spec("onnx_ir") is None:  # other formats are tested all the same
        yield
        return
    import onnx_ir

    from prunekit.export.formats.onnx import write

    folder = run_folder(tmp_path_factory) / "traces"
    folder.mkdir(exist_ok=True)
    trace = write._traced

    def shared(job: Any, config: Any, model: Any, plain: bool, logits: str) -> Any:
        key = hashlib.sha256(repr((model.config.to_json_string(), plain, logits == "all")).encode())
        for name, tensor in sorted(model.state_dict().items()):
            key.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            key.update(tensor.contiguous().view(torch.uint8).numpy().data)
        file = folder / f"{key.hexdigest()}.onnx"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                onnx_ir.save(trace(job, config, model, plain, logits), file)
        return onnx_ir.load(file)

    write._traced = shared
    yield
    write._traced = trace
