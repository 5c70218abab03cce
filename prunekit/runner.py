"""A model in a runtime, whatever that is: logits of a text, greedy decoding with the runtime's own KV cache, timing."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from prunekit.machine import synchronize
from prunekit.timing import Clock

Array = Any  # numpy arrays: their shapes and types are in the docstrings


@dataclass(frozen=True)
class Decoded:
    """Greedy tokens, int64 [batch, tokens], the seconds until the first of them, and the seconds of each other one."""

    tokens: Array
    ttft: float
    tpot: float


class Runner(AbstractContextManager["Runner"], ABC):
    """One loaded model. ``max_batch`` is the most sequences it takes at once (None: any number), ``kv_element_bytes``
    the bytes of one number in its KV cache."""

    vocab_size: int
    max_batch: int | None = 1
    kv_element_bytes: float = 4

    @abstractmethod
    def logits(self, ids: Array) -> Array:
        """Logits of every position, float32 [n, vocab_size], for one sequence of token ids, int64 [n]."""

    @abstractmethod
    def start(self, ids: Array) -> Array:
        """Forget what was; run prompts of equal length, int64 [batch, n]. Returns the last position's logits, float32
        [batch, vocab_size]."""

    @abstractmethod
    def step(self, tokens: Array) -> Array:
        """Append one token to each sequence, int64 [batch], using the KV cache. Returns logits as :meth:`start`."""

    def greedy(self, ids: Array, tokens: int, clock: Clock = time.perf_counter) -> Decoded:
        """The most likely ``tokens`` tokens after prompts of int64 [batch, n], timed. ``tpot`` is a mean over
        ``tokens - 1`` decode steps."""
        begin = clock()
        made = [self.start(ids).argmax(-1)]
        first = clock()
        for _ in range(tokens - 1):
            made.append(self.step(made[-1]).argmax(-1))
        end = clock()
        return Decoded(np.stack(made, axis=1).astype(np.int64), first - begin, (end - first) / max(1, tokens - 1))

    def close(self) -> None:
        """Free the runtime's memory."""
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TorchRunner(Runner):
    """A transformers causal LM, with transformers' own dynamic KV cache."""

    max_batch: int | None = None

    def __init__(self, model: Any):
        self.model = model.eval()
        self.vocab_size = int(model.config.vocab_size)
        self._cache: Any = None

    def _tensor(self, ids: Array) -> Any:
        import torch

        return torch.as_tensor(ids, dtype=torch.int64).to(next(self.model.parameters()).device)

    def _last(self, ids: Any) -> Any:
        """Logits of the last position, a tensor [batch, vocab_size] on the model's device."""
        import torch

        with torch.inference_mode():
            return self.model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[
                :, -1
            ]

    def _forget(self) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self.model.config)

    def logits(self, ids: Array) -> Array:
        import torch

        with torch.inference_mode():
            return self.model(input_ids=self._tensor(ids)[None], use_cache=False).logits[0].float().cpu().numpy()

    def start(self, ids: Array) -> Array:
        self._forget()
        return self._last(self._tensor(ids)).float().cpu().numpy()

    def step(self, tokens: Array) -> Array:
        return self._last(self._tensor(tokens)[:, None]).float().cpu().numpy()

    def greedy(self, ids: Array, tokens: int, clock: Clock = time.perf_counter) -> Decoded:
        """As in :class:`Runner`, with tokens that stay on the device: a GPU is waited for twice, not at every step."""
        import torch

        prompt = self._tensor(ids)
        device = prompt.device
        self._forget()
        synchronize(device)
        begin = clock()
        made = [self._last(prompt).argmax(-1)]
        synchronize(device)
        first = clock()
        for _ in range(tokens - 1):
            made.append(self._last(made[-1][:, None]).argmax(-1))
        synchronize(device)
        end = clock()
        return Decoded(torch.stack(made, 1).cpu().numpy(), first - begin, (end - first) / max(1, tokens - 1))
