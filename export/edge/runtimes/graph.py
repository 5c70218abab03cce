"""A graph of PyTorch whose KV cache goes in and comes out as tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


class GraphModel:
    """model.json of ``folder`` tells the sizes of the cache; :meth:`load` opens the graph."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        torch.set_num_threads(threads)
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.vocab_size = int(facts["vocab_size"])
        self._heads, self._size = facts["key_value_heads"], facts["head_dim"]
        self._dtype = getattr(torch, facts["dtype"])
        self._device = device
        self._graph = self.load(folder, device)
        self._cache: list[Any] = []

    def load(self, folder: Path, device: str) -> Any:
        """The graph of ``folder`` on ``device``."""
        raise NotImplementedError

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        self._cache = [
            torch.zeros(1, heads, 0, self._size, dtype=self._dtype, device=self._device)
            for heads in self._heads
            for _ in ("key", "value")
        ]
        return self._run(ids)

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        return self._run([token])

    def _run(self, ids: list[int]) -> int:
        past, length = self._cache[0].shape[2], len(ids)
        with torch.inference_mode():
            given = torch.tensor([ids], device=self._device)
            mask = torch.ones(1, past + length, dtype=torch.int64, device=self._device)
            positions = torch.arange(past, past + length, device=self._device)[None]
            last = torch.tensor([length - 1], device=self._device)
            logits, *self._cache = self._graph(given, mask, positions, last, *self._cache)
        return int(logits[0, -1].argmax())
