"""A model that is never whole in memory: a decoder layer's weights are read when it runs, and let go behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit.models.head import Head
from prunekit.models.modeling import register_pruned
from prunekit.models.runner import Array
from prunekit.models.source import Source, check_runs
from prunekit.models.stored.reading import StoredWeights, Weights
from prunekit.models.stored_weights import HEAD
from prunekit.utils.numerics.finite import watched_layers
from prunekit.utils.quiet import quiet

TABLE = "model.embed_tokens.weight"
# Numbers of a table that are read and multiplied at a time.
_ELEMENTS = 1 << 26


class StreamedModel:
    """The model of ``source`` on the CPU, computed in ``dtype`` (None: as stored) with ``weights`` (default: its own).

    Its memory is one decoder layer, a part of the head's table, and the activations.
    """

    def __init__(self, source: Source, dtype: torch.dtype | None = None, weights: Weights | None = None):
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        register_pruned()
        self._source = source
        self._dtype = dtype or source.dtype
        self._weights = weights or StoredWeights(source)
        options = (
            {"attn_implementation": source.family.attn_implementation} if source.family.attn_implementation else {}
        )
        with init_empty_weights(include_buffers=False), quiet():
            # A copy of the config, which transformers writes into.
            made: Any = AutoModelForCausalLM.from_config(
                type(source.config).from_dict(source.config.to_dict()), dtype=self._dtype, **options
            )
        self.model = made.eval().requires_grad_(False)
        _read_when_run(self.model.model.layers, "model.layers.", self._part)
        _read_into(self.model.model.norm, "model.norm.", self._part)
        self._tied = source.shape.tie_word_embeddings
        self.model.lm_head = _Product(self._head_rows, source.shape.vocab_size)

    def check_runs(self) -> None:
        """Raises PrunekitError where config and weights make a model that computes nothing."""
        with _rows_of(self.model.model.embed_tokens, torch.zeros(1, dtype=torch.long), self._rows):
            check_runs(self._source, self.model)

    def logits(self, sequences: Sequence[Array], advance: Callable[[], None] = lambda: None) -> list[Array]:
        """Logits of every position, float32 [n, vocab_size], of each sequence of token ids, int64 [n]. All run
        together, filled up behind their ends, which no position in front of them sees; ``advance`` is called after
        each layer.

        Raises PrunekitError where a layer's outputs are not finite.
        """
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.as_tensor(np.asarray(sequence))
        known, places = ids.unique(return_inverse=True)
        handles = [layer.register_forward_hook(lambda *given: advance()) for layer in self.model.model.layers]
        try:
            with torch.no_grad(), watched_layers(self.model.model.layers):
                with _rows_of(self.model.model.embed_tokens, known, self._rows):
                    embedded = self.model.model.embed_tokens(places)
                states = self.model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
                ends = torch.cat([hidden[: len(each)] for hidden, each in zip(states, sequences, strict=True)])
                made = Head(self.model)(ends).numpy()
        finally:
            for handle in handles:
                handle.remove()
        return list(np.split(made, np.cumsum([len(each) for each in sequences])[:-1]))

    def _part(self, name: str) -> torch.Tensor:
        return self._weights.read(name).to(self._dtype)

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows ``ids`` [n], rising, of the embedding table."""
        return torch.cat([self._weights.rows(TABLE, row, row + 1) for row in ids.tolist()]).to(self._dtype)

    def _head_rows(self, start: int, stop: int) -> torch.Tensor:
        return self._weights.rows(TABLE if self._tied else HEAD, start, stop).to(self._dtype)


class _Product(nn.Module):
    """A head whose table is read in stretches of rows."""

    def __init__(self, rows: Callable[[int, int], torch.Tensor], size: int):
        super().__init__()
        self._rows, self._size = rows, size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        made = hidden.new_empty(*hidden.shape[:-1], self._size)
        step = max(1, _ELEMENTS // hidden.shape[-1])
        for start in range(0, self._size, step):
            rows = self._rows(start, min(start + step, self._size))
            made[..., start : start + len(rows)] = hidden @ rows.T
        return made


def _read_when_run(layers: nn.ModuleList, prefix: str, read: Callable[[str], torch.Tensor]) -> None:
    """Give every layer its parameters before it runs, and take them away afterwards."""
    for index, layer in enumerate(layers):
        name = f"{prefix}{index}."
        layer.register_forward_pre_hook(lambda module, args, name=name: _read_into(module, name, read))
        # First of all hooks behind it, so that no other one sees two layers in memory.
        layer.register_forward_hook(lambda module, args, output: _empty(module), prepend=True)


def _read_into(module: nn.Module, prefix: str, read: Callable[[str], torch.Tensor]) -> None:
    for name, _ in list(module.named_parameters()):
        _put(module, name, read(prefix + name))


def _empty(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        _put(module, name, torch.empty_like(parameter, device="meta"))


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    place, _, last = name.rpartition(".")
    module.get_submodule(place)._parameters[last] = nn.Parameter(tensor, requires_grad=False)


@contextmanager
def _rows_of(table: Any, ids: torch.Tensor, rows: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """``table``, an embedding, holds the rows ``ids`` alone while the block runs."""
    whole, padding = table._parameters["weight"], table.padding_idx
    table._parameters["weight"] = nn.Parameter(rows(ids), requires_grad=False)
    table.padding_idx = None  # of a row that may not be there; it matters to gradients alone
    try:
        yield
    finally:
        table._parameters["weight"], table.padding_idx = whole, padding
