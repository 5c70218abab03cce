"""An optimised model, a KV cache and, on a GPU, a CUDA graph of the decode step: what generate() drives."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import torch

from prunekit.errors import PrunekitError
from prunekit.kernels.ops.next_token import next_token
from prunekit.kernels.ops.utils.backend import planned_gpu
from prunekit.kernels.ops.utils.dispatch import choosing
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.runtime.block import Where
from prunekit.kernels.runtime.decoder import Decoder
from prunekit.kernels.runtime.seal import Seal, unwrapped

MAX_BATCH = 64
BUCKETS = (1, 2, 4, 8, 16, 32, MAX_BATCH)
# Capacities are multiples of this, so that prompts of nearly the same length share a cache and a graph.
_CAPACITY_STEP = 256


def bucket(batch: int) -> int:
    """The batch size that ``batch`` sequences run at. Raises PrunekitError beyond the largest."""
    for size in BUCKETS:
        if 1 <= batch <= size:
            return size
    raise PrunekitError(f"A batch must hold 1 to {MAX_BATCH} sequences, got {batch}; send them in several calls.")


def rounded_capacity(max_length: int) -> int:
    """Tokens that the cache of a runtime for ``max_length`` has room for."""
    return padded(max_length, _CAPACITY_STEP)


def decoder_of(model: Any) -> Decoder:
    """The decoder of an optimised model. Raises PrunekitError where it is not optimised."""
    decoder = getattr(model, "prunekit_decoder", None)
    if not isinstance(decoder, Decoder):
        raise PrunekitError("This model is not optimised; call prunekit.kernels.optimize(model) first.")
    return decoder


def highest_logits(state: torch.Tensor) -> torch.Tensor:
    """The highest logit of every sequence, float32 [slots], as ``state`` [2, slots] of a :class:`Runtime` holds it; NaN
    where any is."""
    return state[1].view(torch.float32)[::2]


class Runtime:
    """Prefill and decode of up to ``batch`` sequences of up to ``max_length`` tokens, prompt included.

    The batch is filled up to a bucket with one-token sequences, so that few graphs serve every batch size. ``model``
    must come from :func:`prunekit.kernels.optimize`. Everything is allocated once; :meth:`prefill` starts anew.
    ``arena`` is the memory of another runtime's cache to be used again: only one of the two can then hold sequences.
    Raises PrunekitError where the model is not optimised or was moved since, or a size is out of range.
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        max_length: int,
        *,
        cuda_graphs: bool = True,
        arena: torch.Tensor | None = None,
    ):
        decoder = decoder_of(model)
        self.seal: Seal = model.prunekit_seal
        self.seal.check(model)
        # The model holds its runtimes.
        self._model = weakref.ref(unwrapped(model))
        if max_length < 2:
            raise PrunekitError(f"max_length must be at least 2 (a prompt token and a new one), got {max_length}.")
        self.decoder = decoder
        self.slots = bucket(batch)
        self.capacity = rounded_capacity(max_length)
        self.device = decoder.device
        self.uses_graph = cuda_graphs and self.device.type == "cuda"
        # Not inference_mode: some models' rotary embeddings keep tensors that are made here.
        with torch.no_grad():
            self.cache = decoder.cache(self.slots, self.capacity, arena)
            self.ropes = decoder.ropes(self.capacity)
            # Tokens and their logits in one memory, so that one copy brings both to the host.
            self.state = torch.zeros(2, self.slots, dtype=torch.int64, device=self.device)
            self.tokens = self.state[0]
            self.positions = torch.zeros(self.slots, dtype=torch.int32, device=self.device)
            self.lengths = torch.ones_like(self.positions)
            # What the tokens become before the first layer.
            self.hidden = decoder.embed(self.tokens).contiguous()
            self.arrivals = decoder.arrivals(self.slots)
            rows = torch.arange(self.slots, dtype=torch.int32, device=self.device)
            self.where = Where(self.positions, rows, True)
        self.batch = batch
        self._used = self.capacity
        self._graph: Any = None
        self._logits: Any = None

    @property
    def model(self) -> Any:
        """The model it was made for, None where that is gone."""
        return self._model()

    def reset(self, batch: int) -> None:
        """Forget all sequences; the next prefill brings ``batch`` of them."""
        if bucket(batch) != self.slots:
            raise PrunekitError(f"This runtime holds {self.slots} sequences; make another for a batch of {batch}.")
        self.batch = batch

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Start sequences from prompts ``ids`` [batch, L], of which sequence b has ``lengths[b]`` tokens from the left
        (default: all L). Returns the logits [batch, vocabulary] of each one's last token.

        Raises PrunekitError where the prompts don't fit or a length is none of 1 to L; token ids are not checked.
        """
        if lengths is not None and not (
            len(lengths) == len(ids) and 1 <= lengths.min() <= lengths.max() <= ids.shape[1]
        ):
            raise PrunekitError(f"The lengths of prompts of shape {list(ids.shape)} must be 1 to {ids.shape[1]} each.")
        if ids.shape[0] != self.batch or not 1 <= ids.shape[1] < self.capacity:
            raise PrunekitError(
                f"Prompts of shape {list(ids.shape)} don't fit a runtime of {self.batch} sequences and "
                f"{self.capacity} tokens."
            )
        if (model := self.model) is not None:
            self.seal.check(model)
        self.seal.refresh()
        ids = ids.to(self.device)
        if lengths is None:
            lengths = torch.full((self.batch,), ids.shape[1])
        lengths = lengths.to(self.device, torch.int32)
        # The slots that no sequence fills decode a token over and over at place 0.
        self.positions.zero_()
        self.lengths.fill_(1)
        self.tokens.zero_()
        self.hidden.copy_(self.decoder.embed(self.tokens))
        self.positions[: self.batch] = lengths - 1
        logits = self.decoder.prefill(ids, lengths, self.cache, self.ropes)
        self._go_on(logits)
        self._used = ids.shape[1]
        return logits

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Feed ``tokens`` [batch], or where None those of the highest logit so far; returns logits [batch, vocabulary].

        ``self.tokens`` then holds the tokens of the highest logit. The result is overwritten by the next step. Raises
        PrunekitError where the cache is full.
        """
        if self._used >= self.capacity:
            raise PrunekitError(
                f"The cache holds {self.capacity} tokens a sequence and is full; make a runtime of a larger max_length."
            )
        self._used += 1
        if tokens is not None:
            self.put(tokens)
        if not self.uses_graph:
            # Kernels that overlap read positions before they wait for the kernel before: right at the start of a graph,
            # wrong where that is the last one of the step before. Where launches are only planned for a GPU, they are
            # those of its graph.
            with nullcontext() if planned_gpu() is not None else choosing(overlap="off"):
                self._logits = self._body()
        else:
            self.record()
            self._graph.replay()
        return self._logits[: self.batch]

    @torch.inference_mode()
    def put(self, tokens: torch.Tensor) -> None:
        """Feed ``tokens`` [batch] to the next step in place of those of the highest logit."""
        self.tokens[: self.batch] = tokens
        self.hidden[: self.batch] = self.decoder.embed(self.tokens[: self.batch])

    def _body(self) -> torch.Tensor:
        logits = self.decoder.step(self.hidden, self.where, self.lengths, self.cache, self.ropes, self.arrivals)
        self._go_on(logits)
        return logits

    def _go_on(self, logits: torch.Tensor) -> None:
        """The likeliest tokens, their embeddings, and the places after those that were read."""
        rows = len(logits)
        changing = (self.tokens, highest_logits(self.state), self.positions, self.lengths)
        embed = self.decoder.embed
        next_token(
            logits,
            *(each[:rows] for each in changing),
            embed.weight,
            self.hidden[:rows],
            getattr(embed, "embed_scale", None),
        )

    @torch.inference_mode()
    def record(self) -> None:
        """Record a step as a CUDA graph where one is used and not yet there; else the first step does it, which then
        takes long: kernels are compiled for it.

        What the trial runs write into the cache lies at places that prompts or real steps overwrite before they read.
        """
        if not self.uses_graph or self._graph is not None:
            return
        changing = (self.tokens, self.positions, self.lengths, self.hidden)
        before = [each.clone() for each in changing]

        def rewind() -> None:
            for each, value in zip(changing, before, strict=True):
                each.copy_(value)
            # The first kernel of a step reads positions before it waits for what went before.
            stream.synchronize()

        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            # Kernels compile and libraries allocate their workspaces here, which a capture must not see.
            for _ in range(2):
                rewind()
                self._body()
            rewind()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph):
            self._logits = self._body()
        self._graph = graph
