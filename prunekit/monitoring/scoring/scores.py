"""What one model, or two, say of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.evaluation.token_scores import TokenScores

if TYPE_CHECKING:
    from prunekit.monitoring.scoring.contexts import Context

Array = Any  # numpy arrays: their shapes and types are in the docstrings


@dataclass(frozen=True, slots=True)
class Shadow:
    """The deployed model beside the dense one on the same tokens, means a token in nats.

    ``kl`` is KL(dense || deployed) over prompt and answer; ``agreement`` the share of tokens for which both rank the
    same token first. ``prompt_increase`` and ``answer_increase`` are the NLL under the deployed model less that under
    the dense one. An answer that the deployed model wrote is likelier to itself, so that its ``answer_increase`` is
    below zero: with the other sign it estimates KL(deployed || dense); it is None where there is no answer. ``bound``:
    a server told only the likeliest tokens, so that KL is a lower bound.
    """

    kl: float
    agreement: float
    prompt_increase: float
    answer_increase: float | None = None
    bound: bool = False


@dataclass(frozen=True, slots=True)
class RequestScore:
    """One request under the deployed model: NLL a token in nats of the prompt and of the answer, ``feature`` the mean
    hidden state of the prompt, float16 [hidden_size], and what it is beside the dense model, None where that has not
    read it. ``logprob_gap`` is how far the server's own log-probability of the answer lies from this model's, in nats a
    token, None where the log has none or the text was cut."""

    id: str
    prompt_nll: float
    answer_nll: float | None
    feature: Array
    logprob_gap: float | None = None
    shadow: Shadow | None = None


def request_score(context: Context, made: TokenScores, feature: Array, *, bound: bool = False) -> RequestScore:
    """The scores of a context, of which ``made`` holds every token but the first."""
    split = context.prompt - 1
    answered = len(context.ids) - context.prompt
    answer_nll = float(made.nll[split:].mean()) if answered else None
    gap = None
    if context.said is not None and context.whole and answer_nll is not None:
        gap = abs(answer_nll + context.said)
    return RequestScore(
        id=context.id,
        prompt_nll=float(made.nll[:split].mean()),
        answer_nll=answer_nll,
        feature=feature,
        logprob_gap=gap,
        shadow=None if made.kl is None else _shadow(made, split, bound),
    )


def _shadow(made: TokenScores, split: int, bound: bool) -> Shadow:
    assert made.kl is not None and made.agree is not None and made.baseline_nll is not None
    increase = made.nll - made.baseline_nll
    answer = slice(split, None)
    has_answer = len(made.nll) > split
    return Shadow(
        kl=float(made.kl.mean()),
        agreement=float(made.agree.mean()),
        prompt_increase=float(increase[:split].mean()),
        answer_increase=float(increase[answer].mean()) if has_answer else None,
        bound=bound,
    )


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error (None of one value)."""
    import numpy as np

    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
