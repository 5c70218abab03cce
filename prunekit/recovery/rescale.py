"""Rescale: after the refit, one factor for every input and every output of each projection, tuned end to end.

A refit solves one projection after another on text that all of them share, so that what is left of the error is a
little of everything. Factors are few (for SmolLM2-135M 0.3 % of the weights), so that thousands of tokens determine
them, and they answer to what counts in the end: the Kullback-Leibler divergence from the dense model's next-token
distribution to the pruned one's. Afterwards they are folded into the weights, so that nothing is left to compute. This
is gradient descent, though no weight is trained by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.models.head import Head, hidden_states
from prunekit.plan.settings import RescaleConfig
from prunekit.recovery.training.distance import divergence
from prunekit.utils.advance import Advance, untold
from prunekit.utils.numerics.bf16 import fast_products
from prunekit.utils.numerics.finite import watched_layers
from prunekit.utils.numerics.frozen import frozen
from prunekit.utils.process.ranks import in_order, share_of, size, sum_over_ranks

# Of all the text, and of what the model has not written, where no share is asked for.
_SHARE = 0.4
_OF_OTHERS = 2 / 3
# No factor's gradient is divided by less.
_TINY = 1e-6


def split_text(
    config: RescaleConfig, ids: torch.Tensor, written: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The text ``ids`` [N, L] of the refit, and that of rescaling: a sequence at least, and two of them.

    What the model has ``written`` itself (bool [N]) goes to the refit as far as there is other text: a refit on it
    carries over to texts of other kinds, factors tuned on it do not (SmolLM2-135M).
    """
    config.check(len(ids))
    count = min(max(2, round(_share(config, len(ids), written) * len(ids))), len(ids) - 1)
    order = torch.arange(len(ids)) if written is None else torch.argsort(written.int(), stable=True)
    tuned = torch.zeros(len(ids), dtype=torch.bool)
    tuned[order[:count]] = True
    return ids[~tuned], ids[tuned]


def _share(config: RescaleConfig, sequences: int, written: torch.Tensor | None) -> float:
    if config.share is not None:
        return config.share
    others = 0 if written is None else int((~written).sum())
    return min(_SHARE, _OF_OTHERS * others / sequences) if others else _SHARE


@dataclass(frozen=True)
class Rescaled:
    """``kl``: that of each step's text before the step, in nats a token. ``before`` and ``after``: on held-out text,
    without factors and with those that training ended with; ``used`` tells whether they were folded in."""

    kl: tuple[float, ...]
    before: float
    after: float

    @property
    def used(self) -> bool:
        return self.after < self.before


class _Factors:
    """Factors 1 + s of every linear layer below ``layers``, put into its weight on every pass."""

    def __init__(self, layers: nn.Module):
        self.parameters: list[nn.Parameter] = []
        self._linear: list[tuple[nn.Linear, nn.Parameter, nn.Parameter]] = []
        for module in layers.modules():
            if isinstance(module, nn.Linear):
                device = module.weight.device
                entering = nn.Parameter(torch.zeros(module.in_features, device=device))
                leaving = nn.Parameter(torch.zeros(module.out_features, device=device))
                self._linear.append((module, entering, leaving))
                self.parameters += [entering, leaving]
                module.forward = _forward(module, entering, leaving)  # type: ignore[method-assign]

    def remove(self) -> None:
        for module, _, _ in self._linear:
            del module.forward

    def fold(self) -> None:
        """Into the weights: W' = (1 + r) W (1 + c), b' = (1 + r) b."""
        with torch.no_grad():
            for module, entering, leaving in self._linear:
                module.weight.data = _folded(module.weight, entering, leaving, module.weight.dtype)
                if module.bias is not None:
                    module.bias.data = _folded_bias(module.bias, leaving, module.bias.dtype)


def _folded(weight: torch.Tensor, entering: torch.Tensor, leaving: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1 + r) W (1 + c)."""
    return (weight.float() * (1 + leaving)[:, None]).mul_(1 + entering).to(dtype)


def _folded_bias(bias: torch.Tensor, leaving: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1 + r) b."""
    return (bias.float() * (1 + leaving)).to(dtype)


def _forward(module: nn.Linear, entering: nn.Parameter, leaving: nn.Parameter) -> Callable[..., torch.Tensor]:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = _Scaled.apply(inputs, module.weight, module.bias, entering, leaving)
        return made

    return forward


class _Scaled(torch.autograd.Function):
    """A linear layer whose weight is (1 + r) W (1 + c), for inputs [..., n]: a matrix is scaled and not thousands of
    tokens, and no scaled one is kept for the backward pass.

    A factor of an output has the gradient Σ slope · output / (1 + r), over all tokens, and one of an input likewise:
    what enters and leaves is there already, so that no product as large as a weight's gradient is needed."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        entering: torch.Tensor,
        leaving: torch.Tensor,
    ) -> torch.Tensor:
        # Autocast's dtype has to be asked for, since the backward pass runs outside of it.
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        inputs = inputs.to(dtype)
        offset = None if bias is None else _folded_bias(bias, leaving, dtype)
        made = nn.functional.linear(inputs, _folded(weight, entering, leaving, dtype), offset)
        ctx.save_for_backward(inputs, made, weight, entering, leaving)
        return made

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        inputs, made, weight, entering, leaving = ctx.saved_tensors
        back = slope @ _folded(weight, entering, leaving, slope.dtype)
        by_entering, by_leaving = _by_factor(back, inputs, entering), _by_factor(slope, made, leaving)
        return back if ctx.needs_input_grad[0] else None, None, None, by_entering, by_leaving


def _by_factor(slope: torch.Tensor, scaled: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The gradient by s [n] of what (1 + s) has ``scaled`` [..., n]."""
    total = (slope * scaled).flatten(0, -2).sum(0, dtype=torch.float32)
    whole = 1 + factor
    return total / torch.where(whole.abs() < _TINY, _TINY, whole)


@torch.no_grad()
def final_hidden(model: Any, ids: torch.Tensor, batch_size: int = 4, fast: bool = False) -> torch.Tensor:
    """Hidden states [N, L, hidden_size] that the head of ``model`` reads for ``ids`` [N, L], in its dtype: what a dense
    model has to say, kept until it has been cut. Ranks share out the work, and all get the states of all ``ids``."""
    batches = ids.split(batch_size)
    with watched_layers(model.get_submodule("model.layers")):
        made = [_hidden(model, batch, fast) for batch in share_of(batches)]
    return torch.cat(in_order(made, len(batches)))


def rescale(
    model: Any,
    ids: torch.Tensor,
    wanted: torch.Tensor,
    config: RescaleConfig | None = None,
    *,
    seed: int = 0,
    fast: bool = False,
    advance: Advance = untold,
) -> Rescaled:
    """Tune the factors of the pruned ``model`` in place on ``ids`` [N, L], toward the dense model whose
    :func:`final_hidden` on them is ``wanted`` [N, L, hidden_size]; both share the head. ``fast`` allows
    :func:`~prunekit.utils.numerics.bf16.fast_products`. Ranks share out the sequences of each step, and all come to the
    same factors.

    Raises PrunekitError where a divergence is not finite; weights are then as they were.
    """
    config = config or RescaleConfig()
    held = config.held(len(ids))
    (held_ids, held_wanted), (ids, wanted) = (ids[:held], wanted[:held]), (ids[held:], wanted[held:])
    head = Head(model, fast)
    with watched_layers(model.get_submodule("model.layers")):
        before = _held_out(model, head, held_ids, held_wanted, config.batch_size, fast)
    factors = _Factors(model.get_submodule("model.layers"))
    adam = torch.optim.Adam(factors.parameters, lr=config.rate, betas=(0.9, 0.95))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    batches = order.split(config.batch_size)
    seen: list[float] = []
    try:
        with frozen(model):
            for step, chosen in enumerate(batches):
                for group in adam.param_groups:
                    group["lr"] = config.rate * _pace(step, len(batches))
                adam.zero_grad()
                kl = _descend(model, head, ids, wanted, chosen, fast)
                kl = _of_all_ranks(kl, factors.parameters)
                adam.step()
                seen.append(kl)
                advance(note=f"KL {kl:.4f}")
        after = _held_out(model, head, held_ids, held_wanted, config.batch_size, fast)
    finally:
        factors.remove()
    if not all(map(math.isfinite, (*seen, before, after))):
        raise PrunekitError(
            "Rescaling came to values that are not finite; set rescale=false, or compute in float32 (--dtype float32)."
        )
    made = Rescaled(tuple(seen), before, after)
    if made.used:
        factors.fold()
    return made


def _descend(
    model: Any, head: Head, ids: torch.Tensor, wanted: torch.Tensor, chosen: torch.Tensor, fast: bool
) -> float:
    """Give the factors the gradient of the mean KL(dense ‖ pruned) of the ``chosen`` sequences, as far as it comes from
    this rank's share of them. Returns what that share adds to the mean."""
    mine = share_of(chosen)
    if not len(mine):
        return 0.0
    with torch.enable_grad():
        hidden = _hidden(model, ids[mine], fast)
    kl, slope = _slope(head, wanted[mine], hidden.detach(), len(chosen) * ids.shape[1])
    hidden.backward(slope)
    return kl


def _of_all_ranks(kl: float, factors: list[nn.Parameter]) -> float:
    """Add up the gradients of ``factors`` over ranks, and what is returned, ``kl``."""
    if size() == 1:
        return kl
    for factor in factors:
        if factor.grad is None:
            factor.grad = torch.zeros_like(factor)
    total = torch.tensor(kl, dtype=torch.float64)
    sum_over_ranks(total, *(factor.grad for factor in factors if factor.grad is not None))
    return total.item()


def _pace(step: int, steps: int) -> float:
    """Share of the rate: rises over a tenth of the steps, falls to 0 in a cosine."""
    return min(1.0, (step + 1) / max(1.0, steps / 10)) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _held_out(model: Any, head: Head, ids: torch.Tensor, wanted: torch.Tensor, batch_size: int, fast: bool) -> float:
    """Mean KL(dense ‖ pruned) on ``ids`` [N, L]."""
    total = torch.zeros((), dtype=torch.float64)
    for batch, sought in share_of([*zip(ids.split(batch_size), wanted.split(batch_size), strict=True)]):
        for dense, own in _pieces(head, sought, _hidden(model, batch, fast)):
            total += divergence(head(dense), head(own))[0].item()
    sum_over_ranks(total)
    return total.item() / ids.numel()


def _hidden(model: Any, ids: torch.Tensor, fast: bool) -> torch.Tensor:
    with fast_products(model.get_input_embeddings().weight.device, fast):
        return hidden_states(model, ids)


def _slope(head: Head, wanted: torch.Tensor, hidden: torch.Tensor, count: int) -> tuple[float, torch.Tensor]:
    """What the positions of the final hidden states [B, L, d] add to the mean KL(dense ‖ pruned) over ``count``
    positions, and its gradient by ``hidden``. The graph of a few hundred positions' logits at a time is made and
    spent."""
    total = 0.0
    slopes: list[torch.Tensor] = []
    for dense, own in _pieces(head, wanted, hidden):
        logits, pull_back = head.traced(own)
        with torch.no_grad():
            kl, slope, _ = divergence(head(dense), logits)
        slopes.append(pull_back(slope.div_(count)))
        total += kl.item()
    return total / count, torch.cat(slopes).view_as(hidden)


def _pieces(head: Head, wanted: torch.Tensor, hidden: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Final hidden states [B, L, d] of both models, a few hundred positions [n, d] at a time."""
    return zip(*(each.flatten(0, 1).split(head.rows) for each in (wanted, hidden)), strict=True)
