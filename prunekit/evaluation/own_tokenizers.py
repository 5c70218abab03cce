"""Two models on the same text, each with its own tokenizer: what can be compared where their tokens differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunekit.evaluation.perplexity import EvalConfig, Evaluation, TextResult, evaluate

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Read:
    """A model, its tokenizer, and the texts as that gives them: token ids [n] by name."""

    model: Any
    tokenizer: Any
    tokens: Mapping[str, torch.Tensor]


def evaluate_apart(
    read: Read, baseline: Read, config: EvalConfig, *, name: str = "model", baseline_name: str = "baseline"
) -> Evaluation:
    """Perplexity of both on each text, in tokens of their own, and bits a byte, which don't depend on these.

    Both must have read the same texts. With ``max_tokens`` each reads so many tokens of its own. Raises PrunekitError
    as :func:`~prunekit.evaluation.perplexity.evaluate` does.
    """
    own = evaluate(read.model, read.tokenizer, read.tokens, config, name=name)
    dense = evaluate(baseline.model, baseline.tokenizer, baseline.tokens, config, name=baseline_name)
    texts = zip(own.results, dense.results, read.tokens.values(), baseline.tokens.values(), strict=True)
    results = tuple(
        replace(
            result,
            baseline_nll=other.nll,
            baseline_perplexity=other.perplexity,
            bits_per_byte=_bits_per_byte(result, ids, read.tokenizer),
            baseline_bits_per_byte=_bits_per_byte(other, other_ids, baseline.tokenizer),
        )
        for result, other, ids, other_ids in texts
    )
    return replace(own, baseline=baseline_name, results=results)


def _bits_per_byte(result: TextResult, ids: torch.Tensor, tokenizer: Any) -> float:
    """Bits a token over bytes a token."""
    seen = ids[: result.tokens_seen].tolist()
    text = tokenizer.decode(seen, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return result.nll / math.log(2) * len(seen) / max(1, len(text.encode()))
