"""How far the dense model's predictions move when one of its sub-layers is replaced, computed from that layer on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.models.head import Head
from prunekit.models.sublayers import KINDS, Sublayers
from prunekit.plan.shape import Kind

# The dense model's most likely tokens at a position; what all others have together is one more outcome.
_TOP = 256


class Divergence:
    """KL(dense ‖ changed) in nats a token over ``ids`` [N, L], of the dense model's 256 most likely tokens and the
    rest as one (a lower bound of the whole divergence, by the data-processing inequality).

    Keeps the residual stream of the dense model at every layer, (layers + 1) · N · L · hidden_size numbers of the
    model's dtype.
    """

    def __init__(self, model: Any, family: Family, ids: torch.Tensor, batch_size: int, fast: bool = False):
        self._model = model
        self._parts = Sublayers(model, family, ids.shape[1], fast)
        self._batch = self._parts.at_a_time(batch_size)
        self._head = Head(model, fast)
        with torch.no_grad():
            hidden = torch.cat([self._parts.embed(batch) for batch in ids.split(self._batch)])
            self._streams = self._run(hidden, 0)
            self._order, self._dense = self._dense_top(self._streams[-1])

    def of(self, index: int, kind: Kind, projection: torch.Tensor | None) -> float:
        """The divergence with ``projection`` [d, n] in place of the output projection of that sub-layer of layer
        ``index``; without the whole sub-layer where it is None. Raises PrunekitError where it is not finite."""
        return self.of_each(index, kind, projection).mean().item()

    def of_each(self, index: int, kind: Kind, projection: torch.Tensor | None) -> torch.Tensor:
        """As :meth:`of`, of each of the N sequences by itself, float64 [N] on the CPU."""
        with self._replaced(index, kind, projection), torch.no_grad():
            last = self._run(self._streams[index], index, keep=False)[-1]
            kl = torch.cat(
                [self._kl(batch, place * self._batch) for place, batch in enumerate(last.split(self._batch))]
            )
        kl = kl.cpu() / last.shape[1]
        if not kl.sum() < float("inf"):
            raise PrunekitError(
                f"Layer {index}: without some of its {kind}, the model's predictions are not finite; plan in float32 "
                "(--dtype float32)."
            )
        return kl

    @contextmanager
    def _replaced(self, index: int, kind: Kind, projection: torch.Tensor | None) -> Iterator[None]:
        module = self._parts.projection(self._parts.layers[index], kind)
        weight, bias = module.weight.data, None if module.bias is None else module.bias.data
        module.weight.data = torch.zeros_like(weight) if projection is None else projection.to(weight)
        if bias is not None and projection is None:
            module.bias.data = torch.zeros_like(bias)
        try:
            yield
        finally:
            module.weight.data = weight
            if bias is not None:
                module.bias.data = bias

    def _run(self, hidden: torch.Tensor, first: int, keep: bool = True) -> list[torch.Tensor]:
        """The stream [N, L, d] at layer ``first`` and behind every layer from there on (or behind the last only)."""
        streams = [hidden]
        for index in range(first, len(self._parts.layers)):
            layer, made = self._parts.layers[index], []
            for batch in hidden.split(self._batch):
                for kind in KINDS:
                    _, output = self._parts.run(layer, index, kind, self._parts.normed(layer, kind, batch))
                    batch = batch + self._parts.added(layer, kind, output)
                made.append(batch)
            hidden = torch.cat(made)
            streams = [*streams, hidden] if keep else [hidden]
        return streams

    def _logits(self, hidden: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Float32 logits [n, V] of streams [B, L, d], and the logarithm of their exponentials' sum [n, 1], some of the
        B · L positions at a time."""
        final = self._model.base_model.norm(hidden).flatten(0, 1)
        for some in final.split(self._head.rows):
            logits = self._head(some)
            yield logits, logits.logsumexp(-1, keepdim=True)

    def _dense_top(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The most likely tokens [N, L, _TOP] of streams [N, L, d], and their log-probabilities."""
        orders, values = [], []
        for batch in hidden.split(self._batch):
            for logits, total in self._logits(batch):
                top = logits.topk(min(_TOP, logits.shape[-1]))
                orders.append(top.indices)
                values.append(top.values - total)
        order, value = (torch.cat(each).view(*hidden.shape[:2], -1) for each in (orders, values))
        return order, value

    def _kl(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """Summed KL of each sequence of a batch [B, L, d] that begins with sequence ``start``, float64 [B]."""
        rows = slice(start, start + len(hidden))
        order, dense = self._order[rows].flatten(0, 1), self._dense[rows].flatten(0, 1)
        places = order.split(self._head.rows)
        parts = zip(self._logits(hidden), places, strict=True)
        own = torch.cat([logits.gather(1, place) - total for (logits, total), place in parts])
        dense_rest, own_rest = ((1 - each.exp().sum(-1)).clamp(min=1e-7) for each in (dense, own))
        rest = dense_rest * (dense_rest.log() - own_rest.log())
        tokens = ((dense.exp() * (dense - own)).sum(-1) + rest).double()
        return tokens.view(len(hidden), -1).sum(1)
