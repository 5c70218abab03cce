"""ExecuTorch's runtime in Python, which takes PyTorch's tensors."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

logging.disable(logging.WARNING)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime
logging.disable(logging.NOTSET)

PACKAGES = ("executorch", "torch")


class Model:
    """model.pte of ``folder``."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        portable_lib._unsafe_reset_threadpool(threads)
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.vocab_size, self._chunk = int(facts["vocab_size"]), int(facts["chunk"])
        # The program must outlive its method.
        self._program = Runtime.get().load_program(folder / "model.pte")
        self._method: Any = self._program.load_method("forward")
        self._seen = 0

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        self._seen = 0
        return self._run(ids)

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        return self._run([token])

    def _run(self, ids: list[int]) -> int:
        logits: Any = None
        for begin in range(0, len(ids), self._chunk):
            part = ids[begin : begin + self._chunk]
            places = torch.arange(self._seen, self._seen + len(part))
            (logits,) = self._method.execute((torch.tensor([part]), places))
            self._seen += len(part)
        return int(logits[0, -1].argmax())
