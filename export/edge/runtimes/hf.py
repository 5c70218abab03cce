"""transformers, with the modelling code that lies in the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

PACKAGES = ("transformers", "torch")


class Model:
    """The checkpoint in ``folder`` in the precision in which it is stored."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        made: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
        self._model = made.eval().to(device)
        self._device = device
        self.vocab_size = int(made.config.vocab_size)
        self._cache: Any = None

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        self._cache = transformers.DynamicCache(config=self._model.config)
        return self._run(ids)

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        return self._run([token])

    def _run(self, ids: list[int]) -> int:
        given = torch.tensor([ids], device=self._device)
        with torch.inference_mode():
            made = self._model(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(made.logits[0, -1].argmax())
