"""The decode runtime behind the interface that all runtimes are timed and compared through."""

from __future__ import annotations

import time

import numpy as np

from prunekit.kernels.runtime.generate import generate
from prunekit.kernels.runtime.optimize import optimize
from prunekit.models.runner import Array, Clock, Decoded, TorchRunner


class KernelRunner(TorchRunner):
    """A transformers model, optimized in place. ``greedy`` runs on the decode runtime, at most 64 sequences at once;
    ``logits``, ``start`` and ``step`` are the model's own forward on the packed weights."""

    max_batch = 64

    def __init__(self, model: object):
        super().__init__(optimize(model))

    def greedy(self, ids: Array, tokens: int, clock: Clock = time.perf_counter) -> Decoded:
        """As in :class:`prunekit.models.runner.Runner`. Memory and CUDA graphs are set up before the clock starts, once
        for prompts and answers of one size. The runtime reads the time itself, so ``clock`` is not asked."""
        made = generate(self.model, [list(map(int, row)) for row in ids], max_new_tokens=tokens, eos_token_id=[])
        return Decoded(np.asarray(made.sequences, dtype=np.int64), made.ttft_seconds, made.tpot_seconds or 0.0)
