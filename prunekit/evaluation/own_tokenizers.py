"""Two models on the same text, each with its own tokenizer: what can be compared where their tokens differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunekit.evaluation.perplexity import Evaluation, TextResult

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Read:
    """What one model reached on texts, its tokenizer, and the texts as that gives them: token ids [n] by name."""

    evaluation: Evaluation
    tokenizer: Any
    tokens: Mapping[str, torch.Tensor]


def compare_apart(own: Read, dense: Read) -> Evaluation:
    """Perplexity of both on each text, in tokens of their own, and bits a byte, which don't depend on these.

    Both must have read the same texts. With ``max_tokens`` each reads so many tokens of its own.
    """
    results = zip(
        own.evaluation.results, dense.evaluation.results, own.tokens.values(), dense.tokens.values(), strict=True
    )
    return replace(
        own.evaluation,
        baseline=dense.evaluation.model,
        results=tuple(
            replace(
                result,
                baseline_nll=other.nll,
                baseline_perplexity=other.perplexity,
                bits_per_byte=_bits_per_byte(result, ids, own.tokenizer),
                baseline_bits_per_byte=_bits_per_byte(other, other_ids, dense.tokenizer),
            )
            for result, other, ids, other_ids in results
        ),
    )


def _bits_per_byte(result: TextResult, ids: torch.Tensor, tokenizer: Any) -> float:
    """Bits a token over bytes a token."""
    seen = ids[: result.tokens_seen].tolist()
    text = tokenizer.decode(seen, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return result.nll / math.log(2) * len(seen) / max(1, len(text.encode()))
