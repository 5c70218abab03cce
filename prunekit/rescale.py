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
from prunekit.evaluate import head_logits, hidden_states
from prunekit.frozen import frozen
from prunekit.precision import fast_products

# Logits of a vocabulary are large: so many positions at a time.
_POSITIONS = 512


@dataclass(frozen=True)
class RescaleConfig:
    """``share`` of the calibration text is kept from the refit and serves the factors: on text that projections were
    solved on, their errors are not what they are elsewhere. ``rate`` is Adam's step at its largest, after a tenth of
    the steps; it falls to 0 in a cosine. ``batch_size`` sequences make one step, and every sequence is seen once.
    ``held_out`` of the sequences make no step: factors that don't bring the model closer on them are not used.
    """

    share: float = 1 / 3
    rate: float = 5e-3
    batch_size: int = 4
    held_out: float = 1 / 16

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise PrunekitError(f"--rescale-share must lie above 0 and below 1, got {self.share}.")
        if not 0 < self.rate <= 0.1:
            raise PrunekitError(f"The rate of rescaling must lie above 0 and at most at 0.1, got {self.rate}.")
        if self.batch_size < 1:
            raise PrunekitError(f"A step of rescaling takes at least 1 sequence, got {self.batch_size}.")
        if not 0 < self.held_out < 1:
            raise PrunekitError(f"The held-out share must lie above 0 and below 1, got {self.held_out}.")

    def held(self, sequences: int) -> int:
        """How many of ``sequences`` are held out."""
        return max(1, round(sequences * self.held_out))

    def steps(self, sequences: int) -> int:
        """Steps on ``sequences``, those that are held out left out."""
        return math.ceil((sequences - self.held(sequences)) / self.batch_size)

    def check(self, sequences: int) -> None:
        """Raises PrunekitError where ``sequences`` are too few for :meth:`split`."""
        if sequences < 3:
            raise PrunekitError(
                f"Refit and rescaling need 3 sequences at least, got {sequences}; raise --sequences, or use "
                "--no-rescale."
            )

    def split(self, ids: torch.Tensor, written: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The text ``ids`` [N, L] of the refit, and that of rescaling: a sequence at least, and two of them.

        What the model has ``written`` itself (bool [N]) goes to the refit as far as there is other text: a refit on it
        carries over to texts of other kinds, factors tuned on it do not (SmolLM2-135M).
        """
        self.check(len(ids))
        count = min(max(2, round(len(ids) * self.share)), len(ids) - 1)
        order = torch.arange(len(ids)) if written is None else torch.argsort(written.int(), stable=True)
        tuned = torch.zeros(len(ids), dtype=torch.bool)
        tuned[order[:count]] = True
        return ids[~tuned], ids[tuned]


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
    """Factors 1 + s of every linear layer below ``layers``, as hooks, so that no gradient of a weight is computed."""

    def __init__(self, layers: nn.Module):
        self.parameters: list[nn.Parameter] = []
        self._linear: list[tuple[nn.Linear, nn.Parameter, nn.Parameter]] = []
        self._handles = []
        for module in layers.modules():
            if isinstance(module, nn.Linear):
                device = module.weight.device
                entering = nn.Parameter(torch.zeros(module.in_features, device=device))
                leaving = nn.Parameter(torch.zeros(module.out_features, device=device))
                self._linear.append((module, entering, leaving))
                self.parameters += [entering, leaving]
                self._handles.append(module.register_forward_pre_hook(_before(entering)))
                self._handles.append(module.register_forward_hook(_after(leaving)))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def fold(self) -> None:
        """Into the weights: W' = (1 + r) W (1 + c), b' = (1 + r) b."""
        with torch.no_grad():
            for module, entering, leaving in self._linear:
                weight = module.weight.float() * (1 + leaving)[:, None] * (1 + entering)
                module.weight.data = weight.to(module.weight.dtype)
                if module.bias is not None:
                    module.bias.data = (module.bias.float() * (1 + leaving)).to(module.bias.dtype)


def _before(factor: nn.Parameter) -> Callable[..., tuple[torch.Tensor]]:
    return lambda module, args: (args[0] * (1 + factor).to(args[0].dtype),)


def _after(factor: nn.Parameter) -> Callable[..., torch.Tensor]:
    return lambda module, args, output: output * (1 + factor).to(output.dtype)


@torch.no_grad()
def final_hidden(model: Any, ids: torch.Tensor, batch_size: int = 4, fast: bool = False) -> torch.Tensor:
    """Hidden states [N, L, hidden_size] that the head of ``model`` reads for ``ids`` [N, L], in its dtype: what a dense
    model has to say, kept until it has been cut."""
    return torch.cat([_hidden(model, batch, fast) for batch in ids.split(batch_size)])


def rescale(
    model: Any,
    ids: torch.Tensor,
    wanted: torch.Tensor,
    config: RescaleConfig | None = None,
    *,
    seed: int = 0,
    fast: bool = False,
    advance: Callable[..., None] = lambda *args, **kwargs: None,
) -> Rescaled:
    """Tune the factors of the pruned ``model`` in place on ``ids`` [N, L], toward the dense model whose
    :func:`final_hidden` on them is ``wanted`` [N, L, hidden_size]; both share the head. ``fast`` allows
    :func:`~prunekit.precision.fast_products`.

    Raises PrunekitError where a divergence is not finite; weights are then as they were.
    """
    config = config or RescaleConfig()
    held = config.held(len(ids))
    (held_ids, held_wanted), (ids, wanted) = (ids[:held], wanted[:held]), (ids[held:], wanted[held:])
    before = _held_out(model, held_ids, held_wanted, config.batch_size, fast)
    factors = _Factors(model.get_submodule("model.layers"))
    adam = torch.optim.Adam(factors.parameters, lr=config.rate, betas=(0.9, 0.95))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    batches = order.split(config.batch_size)
    seen: list[float] = []
    try:
        with frozen(model):
            for step, chosen in enumerate(batches):
                with torch.enable_grad():
                    hidden = _hidden(model, ids[chosen], fast)
                kl, slope = _slope(model, wanted[chosen], hidden.detach(), fast)
                for group in adam.param_groups:
                    group["lr"] = config.rate * _pace(step, len(batches))
                adam.zero_grad()
                hidden.backward(slope)
                adam.step()
                seen.append(kl)
                advance(note=f"KL {kl:.4f}")
        after = _held_out(model, held_ids, held_wanted, config.batch_size, fast)
    finally:
        factors.remove()
    if not all(map(math.isfinite, (*seen, before, after))):
        raise PrunekitError(
            "Rescaling came to values that are not finite; use --no-rescale, or compute in float32 (--dtype float32)."
        )
    made = Rescaled(tuple(seen), before, after)
    if made.used:
        factors.fold()
    return made


def _pace(step: int, steps: int) -> float:
    """Share of the rate: rises over a tenth of the steps, falls to 0 in a cosine."""
    return min(1.0, (step + 1) / max(1.0, steps / 10)) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _held_out(model: Any, ids: torch.Tensor, wanted: torch.Tensor, batch_size: int, fast: bool) -> float:
    """Mean KL(dense ‖ pruned) on ``ids`` [N, L]."""
    total = 0.0
    for batch, sought in zip(ids.split(batch_size), wanted.split(batch_size), strict=True):
        pieces = _pieces(sought, _hidden(model, batch, fast))
        total += sum(_divergence(model, dense, own, fast).item() for dense, own in pieces)
    return total / ids.numel()


def _hidden(model: Any, ids: torch.Tensor, fast: bool) -> torch.Tensor:
    with fast_products(model.get_input_embeddings().weight.device, fast):
        return hidden_states(model, ids)


def _slope(model: Any, wanted: torch.Tensor, hidden: torch.Tensor, fast: bool) -> tuple[float, torch.Tensor]:
    """Mean KL(dense ‖ pruned) over all positions of the final hidden states [B, L, d], and its gradient by ``hidden``.
    The graph of a few hundred positions' logits at a time is made and spent."""
    count = wanted[..., 0].numel()
    total = 0.0
    slopes: list[torch.Tensor] = []
    for dense, own in _pieces(wanted, hidden):
        own = own.detach().requires_grad_(True)
        with torch.enable_grad():
            kl = _divergence(model, dense, own, fast) / count
        slopes += torch.autograd.grad(kl, own)
        total += kl.item()
    return total, torch.cat(slopes).view_as(hidden)


def _pieces(wanted: torch.Tensor, hidden: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Final hidden states [B, L, d] of both models, a few hundred positions [n, d] at a time."""
    return zip(*(each.flatten(0, 1).split(_POSITIONS) for each in (wanted, hidden)), strict=True)


def _divergence(model: Any, wanted: torch.Tensor, hidden: torch.Tensor, fast: bool) -> torch.Tensor:
    """KL(dense ‖ pruned) of final hidden states [n, d], summed over positions."""
    with fast_products(hidden.device, fast):
        with torch.no_grad():
            sought = head_logits(model, wanted).log_softmax(-1)
        given = head_logits(model, hidden).log_softmax(-1)
        return nn.functional.kl_div(given, sought, reduction="sum", log_target=True)
