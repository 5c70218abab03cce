"""A model's head: from final hidden states to logits, as the model's own forward makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunekit.utils.numerics.bf16 import has_fast_products

# Float32 logits held at a time: a few ten megabytes stay in a large cache, and the C library's allocator keeps as much
# for the next ones, where larger ones are given back to the system and come anew, page by page.
_ELEMENTS = 1 << 23


class Head:
    """The output embeddings of ``model`` as they are now, with what some families do to logits. With ``fast``
    (:func:`~prunekit.utils.numerics.bf16.fast_products`) the weight is brought to bfloat16 once, and not for every
    product."""

    def __init__(self, model: Any, fast: bool = False):
        module = model.get_output_embeddings()
        exact = not fast or module.weight.dtype != torch.float32 or not has_fast_products(module.weight.device)
        self._project: Callable[[torch.Tensor], torch.Tensor] = module if exact else _bfloat16(module)
        self._cap = getattr(model.config, "final_logit_softcapping", None)
        self.rows = max(1, _ELEMENTS // model.config.vocab_size)
        """How many positions are best taken at a time."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [n, vocabulary] of final hidden states [n, hidden_size]."""
        logits = self._project(hidden)
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits.float()

    def traced(self, hidden: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """Logits of ``hidden`` [n, hidden_size], and what turns a gradient by them into one by ``hidden``, once. The
        graph of these logits alone is made and spent: take :attr:`rows` positions at a time."""
        own = hidden.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self(own)
        return logits.detach(), lambda slope: torch.autograd.grad(logits, own, slope)[0]


def hidden_states(model: Any, block: torch.Tensor, documents: torch.Tensor | None = None) -> torch.Tensor:
    """What the head of ``model`` reads, [B, L, hidden_size], for the ids ``block`` [B, L]. ``documents`` [B, L] number
    the documents of each row from its start: then none sees another, and each begins at position 0."""
    device = model.get_input_embeddings().weight.device
    positions = None if documents is None else _restarted(documents).to(device)
    made = model.base_model(input_ids=block.to(device), position_ids=positions, use_cache=False)
    hidden: torch.Tensor = made.last_hidden_state
    return hidden


def _restarted(documents: torch.Tensor) -> torch.Tensor:
    """Positions [B, L] that begin anew with every document. transformers tells packed documents apart by these."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, 0).cummax(1).values


def _bfloat16(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, bias = (None if each is None else each.detach().to(torch.bfloat16) for each in (linear.weight, linear.bias))
    assert weight is not None
    return lambda hidden: nn.functional.linear(hidden.to(weight.dtype), weight, bias)
