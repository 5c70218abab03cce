"""What a model, and one beside it, says of each token that is to be predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from prunekit.data.sources import source_name
from prunekit.utils.numerics.finite import NotFinite

if TYPE_CHECKING:
    import torch

    from prunekit.models.head import Head


class TokenScores(NamedTuple):
    """Of n tokens, float64 [n] on the CPU each: ``nll`` in nats, and beside a baseline its ``baseline_nll``, ``kl``
    = KL(baseline || model) over the whole vocabulary in nats, and ``agree``, 1 where both rank the same token first."""

    nll: torch.Tensor
    baseline_nll: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    agree: torch.Tensor | None = None


class Paired(NamedTuple):
    """A baseline of that name: its ``head``, and its final hidden states ``hidden`` [n, hidden_size]."""

    name: str
    head: Head
    hidden: torch.Tensor


def token_scores(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    baseline: Paired | None = None,
    *,
    name: str = "model",
    text: str = "text",
) -> TokenScores:
    """Scores of the tokens ``targets`` [n], which the final hidden states ``hidden`` [n, hidden_size] predict.

    Only :attr:`~prunekit.models.head.Head.rows` positions are held as logits at a time. Raises PrunekitError where
    logits are not finite.
    """
    import torch

    targets = targets.to(hidden.device)
    kept: dict[str, list[torch.Tensor]] = {"nll": [], "baseline_nll": [], "kl": [], "agree": []}
    for part, log_probs in log_probs_of(head, hidden, name=name, text=text):
        kept["nll"].append(-log_probs.gather(1, targets[part, None])[:, 0].cpu().double())
        if baseline is None:
            continue
        dense = _log_probs(baseline.head, baseline.hidden[part], baseline.name, text).to(log_probs.device)
        kept["baseline_nll"].append(-dense.gather(1, targets[part, None])[:, 0].cpu().double())
        kept["agree"].append((dense.argmax(-1) == log_probs.argmax(-1)).cpu().double())
        # Where the baseline gives a token no probability at all its term is 0, not 0 · inf.
        kept["kl"].append(torch.where(dense.isneginf(), 0.0, dense.exp() * (dense - log_probs)).sum(-1).cpu().double())
    return TokenScores(**{key: torch.cat(values) for key, values in kept.items() if values})


def log_probs_of(
    head: Head, hidden: torch.Tensor, *, name: str = "model", text: str = "text"
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float32 log-probabilities [rows, vocabulary] of a few positions after the other, with which ones they are."""
    for at in range(0, len(hidden), head.rows):
        part = slice(at, at + head.rows)
        yield part, _log_probs(head, hidden[part], name, text)


def _log_probs(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, name: str, text: str
) -> torch.Tensor:
    log_probs = head(hidden).log_softmax(-1)
    # One NaN or +inf logit makes its whole row NaN.
    if log_probs.isnan().any():
        raise NotFinite(
            f"{name} gave logits that are not numbers on {source_name(text)}; its weights are broken or its dtype "
            "overflows. Try --dtype float32, and if that does not help make the checkpoint again."
        )
    return log_probs
