"""A model in a runtime, whatever that is: logits of a text, greedy decoding with the runtime's own KV cache, timing."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.utils.machine import synchronize
from prunekit.utils.timing import Clock

Array = Any  # numpy arrays: their shapes and types are in the docstrings


@dataclass(frozen=True)
class Decoded:
    """Greedy tokens, int64 [batch, tokens], the seconds until the first of them, and the seconds of each other one."""

    tokens: Array
    ttft: float
    tpot: float


class Runner(AbstractContextManager["Runner"], ABC):
    """One loaded model. ``max_batch`` is the most sequences it takes at once (None: any number), ``mixes_lengths``
    whether these may be prompts of different lengths, ``kv_element_bytes`` the bytes of one number in its KV cache,
    ``facts`` what the runtime tells of how it runs the model (JSON values)."""

    vocab_size: int
    max_batch: int | None = 1
    mixes_lengths: bool = False
    kv_element_bytes: float = 4
    facts: Mapping[str, Any] = MappingProxyType({})

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

    def together(self, prompts: Sequence[Array], tokens: int) -> Array:
        """The most likely ``tokens`` tokens after each prompt, int64 [len(prompts), tokens]. The prompts, int64 [n]
        each, differ in length and are read in one batch, the way this runtime's users do that; a runtime that ends
        texts itself gives -1 behind an end. Raises PrunekitError where it takes one text at a time
        (``mixes_lengths`` says so)."""
        raise PrunekitError("This runtime takes one text at a time; give it one prompt after the other.")

    def close(self) -> None:
        """Free the runtime's memory."""
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MaskedRunner(Runner):
    """A model that is told by a mask what is padding: shorter prompts are filled up on the left."""

    max_batch: int | None = None
    mixes_lengths = True

    @abstractmethod
    def _restart(self, batch: int) -> None:
        """Forget what was; ``batch`` sequences come."""

    @abstractmethod
    def _masked(self, ids: Array, mask: Array, positions: Array) -> Array:
        """Append ids, int64 [batch, n]. ``mask``, int64 [batch, tokens in the cache + n], is 0 at padding;
        ``positions`` are int64 [batch, n]. Returns the last position's logits, float32 [batch, vocab_size]."""

    def together(self, prompts: Sequence[Array], tokens: int) -> Array:
        ids, mask = padded_left(prompts)
        self._restart(len(ids))
        made = [self._masked(ids, mask, np.maximum(mask.cumsum(1) - 1, 0)).argmax(-1)]
        for _ in range(tokens - 1):
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            made.append(self._masked(made[-1][:, None], mask, mask.sum(1, keepdims=True) - 1).argmax(-1))
        return np.stack(made, axis=1).astype(np.int64)

    def until(self, prompts: Sequence[Array], most: Sequence[int], ends: Collection[int]) -> list[list[int]]:
        """The most likely tokens after each prompt, int64 [n], up to and with the first of the tokens ``ends``, and at
        most so many as ``most`` says of each. Raises NotFinite where logits are no numbers."""
        from prunekit.utils.numerics.finite import NotFinite

        ids, mask = padded_left(prompts)
        made: list[list[int]] = [[] for _ in prompts]
        if mask.all():
            logits = self.start(ids)
        else:
            self._restart(len(ids))
            logits = self._masked(ids, mask, np.maximum(mask.cumsum(1) - 1, 0))
        if not (logits < np.inf).all():
            raise NotFinite(
                "The model gave logits that are not numbers; its weights are broken or its dtype overflows."
            )
        padded, open_rows = not mask.all(), set(range(len(made)))
        while True:
            tokens = logits.argmax(-1)
            for row in [*open_rows]:
                made[row].append(int(tokens[row]))
                if made[row][-1] in ends or len(made[row]) >= most[row]:
                    open_rows.discard(row)
            if not open_rows:
                return made
            if padded:
                mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
                logits = self._masked(tokens[:, None], mask, mask.sum(1, keepdims=True) - 1)
            else:
                logits = self.step(tokens)


def padded_left(prompts: Sequence[Array]) -> tuple[Array, Array]:
    """Prompts, int64 [n] each, as one table int64 [batch, longest] filled up with token 0 on the left, and a mask of
    its shape that is 0 there and 1 elsewhere."""
    longest = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), longest), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


class TensorRunner(MaskedRunner):
    """A runtime that takes and gives torch tensors on ``device``: ids go there, tokens stay there, and logits come back
    only where somebody asks for them."""

    device: Any

    def _tensor(self, ids: Array) -> Any:
        """Whole numbers of any kind, as an int64 tensor on the device."""
        import torch

        return torch.as_tensor(ids, dtype=torch.int64).to(self.device)

    @abstractmethod
    def _last(self, ids: Any, mask: Any = None, positions: Any = None) -> Any:
        """Append ids, an int64 tensor [batch, n]; ``mask`` and ``positions`` as :meth:`_masked` (None: nothing is
        padding). Returns the last position's logits, a tensor [batch, vocab_size] on the device."""

    def _masked(self, ids: Array, mask: Array, positions: Array) -> Array:
        return _numpy(self._last(*map(self._tensor, (ids, mask, positions))))

    def start(self, ids: Array) -> Array:
        given = self._tensor(ids)
        self._restart(len(given))
        return _numpy(self._last(given))

    def step(self, tokens: Array) -> Array:
        return _numpy(self._last(self._tensor(tokens)[:, None]))

    def greedy(self, ids: Array, tokens: int, clock: Clock = time.perf_counter) -> Decoded:
        """As in :class:`Runner`, with tokens that stay on the device: a GPU is waited for twice, not at every step."""
        import torch

        prompt = self._tensor(ids)
        self._restart(len(prompt))
        synchronize(self.device)
        begin = clock()
        made = [self._last(prompt).argmax(-1)]
        synchronize(self.device)
        first = clock()
        for _ in range(tokens - 1):
            made.append(self._last(made[-1][:, None]).argmax(-1))
        synchronize(self.device)
        end = clock()
        return Decoded(torch.stack(made, 1).cpu().numpy(), first - begin, (end - first) / max(1, tokens - 1))


def _numpy(logits: Any) -> Array:
    return logits.float().cpu().numpy()


class TorchRunner(TensorRunner):
    """A transformers causal LM, with transformers' own dynamic KV cache."""

    def __init__(self, model: Any):
        self.model = model.eval()
        self.vocab_size = int(model.config.vocab_size)
        self._cache: Any = None

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    def _last(self, ids: Any, mask: Any = None, positions: Any = None) -> Any:
        import torch

        padding = {} if mask is None else {"attention_mask": mask, "position_ids": positions}
        with torch.inference_mode():
            return self.model(
                input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **padding
            ).logits[:, -1]

    def _restart(self, batch: int) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self.model.config)

    def logits(self, ids: Array) -> Array:
        import torch

        with torch.inference_mode():
            return _numpy(self.model(input_ids=self._tensor(ids)[None], use_cache=False).logits[0])
