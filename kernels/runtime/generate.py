"""Text from an optimised model: greedy or sampled, streamed, prompts of different lengths in one batch."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from prunekit.errors import PrunekitError
from prunekit.kernels.runtime.engine import Runtime, highest_logits
from prunekit.kernels.runtime.engine_pool import RuntimePool
from prunekit.kernels.runtime.sampling import Sampling
from prunekit.utils.numerics.finite import blame_layer

Prompts = torch.Tensor | Sequence[Sequence[int]]
# One entry a sequence: its new token, or None where it had already ended.
Tokens = list[int | None]


@dataclass(frozen=True)
class Generated:
    """New tokens of every sequence, the end token included, and how long they took.

    ``setup_seconds`` went into memory, rotary tables and, on a GPU, recording the decode step: a first call's, or of
    one that is larger than those before. ``ttft_seconds`` is from there to the first token on the host (the first
    prompts of a process compile kernels in it); ``tpot_seconds`` the mean time of each token after it (None where there
    was only one), in which the whole batch advances by one.
    """

    sequences: list[list[int]]
    setup_seconds: float
    ttft_seconds: float
    tpot_seconds: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Over all sequences, after the first token; None where there was only one."""
        later = sum(max(0, len(sequence) - 1) for sequence in self.sequences)
        steps = max(len(sequence) for sequence in self.sequences) - 1
        return later / (self.tpot_seconds * steps) if self.tpot_seconds else None


def generate(
    model: Any,
    input_ids: Prompts,
    *,
    max_new_tokens: int = 128,
    attention_mask: torch.Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    cuda_graphs: bool = True,
    on_tokens: Callable[[Tokens], None] | None = None,
) -> Generated:
    """Continue ``input_ids``: a tensor [B, L], padded left or right where ``attention_mask`` says so, or B lists of
    token ids of any lengths. 1 to 64 sequences.

    ``model`` comes from :func:`prunekit.kernels.optimize`. Each sequence ends at ``eos_token_id`` (default: what the
    model's generation config names) or after ``max_new_tokens``. ``on_tokens`` is called with every step's tokens as
    they come. Raises PrunekitError where a prompt is empty or an option out of range.

    >>> generate(optimize(model), tokenizer(["Hello"])["input_ids"], max_new_tokens=8).sequences  # doctest: +SKIP
    [[28, 339, 5248, 253, 1165, 3807, 281, 260]]
    """
    if not do_sample and (temperature != 1.0 or top_k is not None or top_p is not None or seed is not None):
        raise PrunekitError("temperature, top_k, top_p and seed draw tokens; give do_sample=True with them.")
    called = time.perf_counter()
    steps = stream(
        model,
        input_ids,
        max_new_tokens=max_new_tokens,
        attention_mask=attention_mask,
        sampling=Sampling(temperature, top_k, top_p, seed) if do_sample else None,
        eos_token_id=eos_token_id,
        cuda_graphs=cuda_graphs,
    )
    begin = first = last = time.perf_counter()
    sequences: list[list[int]] = []
    for step, tokens in enumerate(steps):
        last = time.perf_counter()
        if step == 0:
            first = last
            sequences = [[] for _ in tokens]
        for sequence, token in zip(sequences, tokens, strict=True):
            if token is not None:
                sequence.append(token)
        if on_tokens is not None:
            on_tokens(tokens)
    later = max(len(sequence) for sequence in sequences) - 1
    return Generated(sequences, begin - called, first - begin, (last - first) / later if later else None)


def stream(
    model: Any,
    input_ids: Prompts,
    *,
    max_new_tokens: int = 128,
    attention_mask: torch.Tensor | None = None,
    sampling: Sampling | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    cuda_graphs: bool = True,
) -> Iterator[Tokens]:
    """As :func:`generate`, one step's tokens at a time; without ``sampling`` the most likely token is taken.

    Memory is taken and the prompts are checked at the call; they run when the first tokens are asked for. Generations
    of one model share memory: where another has begun since, going on with this one raises PrunekitError.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise PrunekitError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}.")
    prompts = _prompts(input_ids, attention_mask, model.config.vocab_size)
    ends = _end_tokens(model, eos_token_id)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    _check_positions(model, ids.shape[1] + max_new_tokens)
    if getattr(model, "prunekit_runtimes", None) is None:
        model.prunekit_runtimes = RuntimePool()
    pool = model.prunekit_runtimes
    runtime = pool.get(model, len(prompts), ids.shape[1] + max_new_tokens, cuda_graphs)
    return _run(pool, runtime, ids, lengths, max_new_tokens, sampling, ends)


def _run(
    pool: RuntimePool,
    runtime: Runtime,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    max_new_tokens: int,
    sampling: Sampling | None,
    ends: frozenset[int],
) -> Iterator[Tokens]:
    batch = len(ids)
    generator = sampling.generator(runtime.device) if sampling else None
    pool.turn += 1
    turn = pool.turn
    runtime.reset(batch)
    logits = runtime.prefill(ids, lengths)
    said: list[list[int]] = [[] for _ in range(batch)]
    # On a GPU the next step starts before this one's tokens are read, so that it needn't wait for the host. One step is
    # wasted where it turns out that all have ended.
    ahead = runtime.device.type == "cuda"
    done = [False] * batch
    for step in range(max_new_tokens):
        with torch.inference_mode():
            if sampling and generator:
                runtime.put(sampling.draw(logits, generator))
            arriving = _Arriving(runtime.state)
        more = step + 1 < max_new_tokens
        if ahead and more:
            logits = runtime.step()
        tokens: Tokens = []
        for row, (token, logit) in enumerate(arriving.read(batch)):
            if not done[row] and not math.isfinite(logit):
                _refuse(runtime, [*ids[row, : int(lengths[row])].tolist(), *said[row]])
            tokens.append(None if done[row] else token)
            said[row].append(token)
            done[row] = done[row] or token in ends
        yield tokens
        if all(done):
            return
        if pool.turn != turn:
            raise PrunekitError("Another generation has begun on this model; finish one before the next.")
        if more and not ahead:
            logits = runtime.step()


class _Arriving:
    """Tokens, and the highest logit where each was chosen, on their way from the device to the host."""

    def __init__(self, state: torch.Tensor):
        self.event = None
        if state.device.type == "cuda":
            self.host = torch.empty(state.shape, dtype=state.dtype, pin_memory=True)
            self.host.copy_(state, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(state.device))
        else:
            self.host = state.clone()

    def read(self, count: int) -> Iterator[tuple[int, float]]:
        if self.event is not None:
            self.event.synchronize()
        return zip(self.host[0, :count].tolist(), highest_logits(self.host)[:count].tolist(), strict=True)


def _refuse(runtime: Runtime, ids: list[int]) -> NoReturn:
    """Raises PrunekitError for logits behind ``ids`` that are not finite: where they come from, and what helps."""
    model = runtime.model
    if model is not None:
        blame_layer(model, lambda: model(torch.tensor([ids], device=runtime.device), use_cache=False, logits_to_keep=1))
    raise PrunekitError(
        f"The model gives logits that are not finite numbers in {str(runtime.decoder.dtype).removeprefix('torch.')}. "
        "Run it in float32 (--dtype float32); if that does not help, its weights are damaged."
    )


def _check_positions(model: Any, length: int) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        warnings.warn(
            f"Prompts and new tokens together take {length} positions; the model was made for {most}.", stacklevel=3
        )


def _prompts(input_ids: Prompts, attention_mask: torch.Tensor | None, vocab_size: int) -> list[torch.Tensor]:
    """The real tokens of every prompt, int64 on the CPU."""
    if isinstance(input_ids, torch.Tensor):
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise PrunekitError(f"input_ids must be whole numbers of shape [batch, length], got {input_ids.shape}.")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise PrunekitError(
                f"attention_mask has shape {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}."
            )
        rows = list(input_ids.cpu().long())
        if attention_mask is not None:
            rows = [row[keep] for row, keep in zip(rows, attention_mask.cpu().bool(), strict=True)]
    else:
        rows = [_row(index, row) for index, row in enumerate(input_ids)]
    if not rows:
        raise PrunekitError("There is no prompt; give at least one.")
    for index, row in enumerate(rows):
        if len(row) == 0:
            raise PrunekitError(f"Prompt {index} is empty; start it with at least one token, such as the BOS token.")
        if row.min() < 0 or row.max() >= vocab_size:
            raise PrunekitError(f"Prompt {index} holds a token outside the vocabulary of {vocab_size:,}.")
    return rows


def _row(index: int, row: Any) -> torch.Tensor:
    if isinstance(row, torch.Tensor):
        row = row.tolist()
    if not isinstance(row, Sequence) or not all(type(token) is int for token in row):
        raise PrunekitError(f"Prompt {index} must be a list of token ids (whole numbers); give a list of such lists.")
    return torch.tensor(row, dtype=torch.int64)


def _end_tokens(model: Any, eos_token_id: Any) -> frozenset[int]:
    if eos_token_id is None:
        eos_token_id = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos_token_id is None:
        return frozenset()
    if isinstance(eos_token_id, torch.Tensor):
        eos_token_id = eos_token_id.tolist()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
