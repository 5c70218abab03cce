"""How far the pruned model is from the dense one, and which way its hidden states should go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from prunekit.models.head import Head

# Elements of float32 logits that stay in a cache beside what is made of them.
_CACHED = 1 << 19


class Apart(NamedTuple):
    """How far logits [n, V] of the pruned model are from what the dense one says: the divergence ``kl``, summed over
    positions, its gradient ``slope`` [n, V] by these logits, and their ``normalisers`` [n], log Σ exp."""

    kl: torch.Tensor
    slope: torch.Tensor
    normalisers: torch.Tensor


def divergence(dense: torch.Tensor, own: torch.Tensor) -> Apart:
    """KL(dense ‖ pruned) of logits [n, V]; its gradient by ``own`` is how much more likely each token became. ``dense``
    and ``own`` are left as they are."""
    # A CPU goes over a matrix eight times here: a few rows at a time, which its cache keeps, take half as long.
    rows = len(own) if own.device.type != "cpu" else max(1, _CACHED // own.shape[-1])
    if rows >= len(own):
        made = _divergence(dense, own)
    else:
        parts = [_divergence(*each) for each in zip(dense.split(rows), own.split(rows), strict=True)]
        made = Apart(*map(torch.cat, zip(*parts, strict=True)))
    return made._replace(kl=made.kl.sum())


def _divergence(dense: torch.Tensor, own: torch.Tensor) -> Apart:
    """With ``kl`` [n] of each position."""
    first, second = dense.log_softmax(-1), own.log_softmax(-1)
    apart = first - second
    normalisers = own[:, 0] - second[:, 0]
    chances = first.exp_()
    # By rows: a BLAS's product of two vectors has other last bits where they lie elsewhere in memory.
    return Apart(apart.mul_(chances).sum(-1), second.exp_().sub_(chances), normalisers)


class Target(Protocol):
    """What the dense model says at a number of positions."""

    def apart(self, start: int, own: torch.Tensor) -> Apart:
        """How far the logits ``own`` [n, V] are from it, at positions ``start`` and after."""


@dataclass(frozen=True)
class HiddenTarget:
    """Final hidden states [n, hidden_size] of the dense model and its head: its whole distribution."""

    head: Head
    hidden: torch.Tensor

    def apart(self, start: int, own: torch.Tensor) -> Apart:
        return divergence(self.head(self.hidden[start : start + len(own)]), own)


@dataclass(frozen=True)
class SampledTarget:
    """Tokens that were drawn from the dense model's distribution p, in place of it (Anshumann et al., Sparse Logit
    Sampling, arXiv 2503.16870). Those of position i stand in ``ids`` [m] from ``first`` [n + 1] of i on up to that of
    i + 1, each once; ``weights`` [m] w are their shares of its draws, and ``told`` [n] is its Σ w log p.

    The divergence Σ w (log p - log q) of the pruned model's q, and its gradient q - w, are on average those of the
    whole distribution.
    """

    first: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    told: torch.Tensor

    def apart(self, start: int, own: torch.Tensor) -> Apart:
        first = self.first[start : start + len(own) + 1]
        here = slice(int(first[0]), int(first[-1]))
        ids, weights = self.ids[here], self.weights[here]
        rows = torch.arange(len(own)).repeat_interleave(first.diff()).to(own.device)
        logs = own.log_softmax(-1)
        normalisers = own[:, 0] - logs[:, 0]
        apart = self.told[start : start + len(own)].sum() - (weights * logs[rows, ids]).sum()
        slope = logs.exp_()
        slope[rows, ids] -= weights
        return Apart(apart, slope, normalisers)


@dataclass(frozen=True)
class WindowTargets:
    """Windows of ``length`` positions whose targets are of different kinds: ``places`` has for each its target, and
    which of that target's windows it is."""

    length: int
    places: Sequence[tuple[Target, int]]

    def apart(self, start: int, own: torch.Tensor) -> Apart:
        made, done = [], 0
        while done < len(own):
            window, inside = divmod(start + done, self.length)
            count = min(self.length - inside, len(own) - done)
            target, place = self.places[window]
            made.append(target.apart(place * self.length + inside, own[done : done + count]))
            done += count
        kl, slopes, normalisers = zip(*made, strict=True)
        return Apart(torch.stack(kl).sum(), torch.cat(slopes), torch.cat(normalisers))


@dataclass(frozen=True)
class Sums:
    """Sums over positions, float64 tensors without dimensions: the divergence, and the loss of the text's next
    tokens."""

    kl: torch.Tensor
    ce: torch.Tensor

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.kl + other.kl, self.ce + other.ce)


class Loss:
    """(1 - λ) · KL + λ · CE, each divided once by how many positions the whole step has of its kind, whatever is
    computed at a time. ``head`` is the pruned model's."""

    def __init__(self, head: Head, ce_share: float = 0.0):
        self._head, self._ce_share = head, ce_share

    def backward(
        self, hidden: torch.Tensor, target: Target, ids: torch.Tensor, sequences: float
    ) -> tuple[Sums, torch.Tensor]:
        """The loss of final hidden states [B, L, hidden_size] of the windows ``ids`` [B, L], in a step of ``sequences``
        such windows, and its gradient by ``hidden``, of the same shape. Where weights of the head ask for a gradient,
        theirs are added to. The graph of a few hundred positions' logits at a time is made and spent."""
        length = ids.shape[1]
        share, positions, followed = self._ce_share, sequences * length, sequences * (length - 1)
        rows = hidden.detach().flatten(0, 1)
        slopes = torch.empty_like(rows)
        following = _following(ids).to(rows.device)
        sums = Sums(*torch.zeros(2, dtype=torch.float64, device=rows.device))
        for start in range(0, len(rows), self._head.rows):
            own = rows[start : start + self._head.rows].requires_grad_(True)
            with torch.enable_grad():
                logits = self._head(own)
            made = logits.detach()
            kl, slope, normalisers = target.apart(start, made)
            slope.mul_((1 - share) / positions)
            ce = _next_tokens(made, normalisers, following[start : start + len(own)], slope, share / followed)
            logits.backward(slope)
            assert own.grad is not None
            slopes[start : start + len(own)] = own.grad
            sums = sums + Sums(kl.double(), ce)
        return sums, slopes.view_as(hidden)

    @torch.no_grad()
    def measure(self, hidden: torch.Tensor, target: Target, ids: torch.Tensor) -> Sums:
        """The sums of :meth:`backward` alone."""
        rows = hidden.flatten(0, 1)
        following = _following(ids).to(rows.device)
        sums = Sums(*torch.zeros(2, dtype=torch.float64, device=rows.device))
        for start in range(0, len(rows), self._head.rows):
            logits = self._head(rows[start : start + self._head.rows])
            kl, _, normalisers = target.apart(start, logits)
            sums = sums + Sums(kl.double(), _next_tokens(logits, normalisers, following[start : start + len(logits)]))
        return sums


def _following(ids: torch.Tensor) -> torch.Tensor:
    """The token after each position of ``ids`` [B, L], flat; -1 after the last of each window."""
    return torch.cat([ids[:, 1:], ids.new_full((len(ids), 1), -1)], 1).flatten()


def _next_tokens(
    logits: torch.Tensor,
    normalisers: torch.Tensor,
    following: torch.Tensor,
    slope: torch.Tensor | None = None,
    weight: float = 0.0,
) -> torch.Tensor:
    """The loss of the tokens that follow, summed; ``weight`` times its gradient is added to ``slope``."""
    known = (following >= 0).nonzero().squeeze(1)
    chosen = following[known]
    ce = (normalisers[known] - logits[known, chosen]).double().sum()
    if slope is not None and weight:
        slope[known] += weight * logits[known].softmax(-1)
        slope[known, chosen] -= weight
    return ce
