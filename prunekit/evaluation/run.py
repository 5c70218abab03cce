"""Evaluating a model by its name: its perplexity, and the distance from the model it was pruned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.data.calibration import check_length, check_tokens
from prunekit.evaluation import perplexity
from prunekit.evaluation.own_tokenizers import Read, evaluate_apart
from prunekit.evaluation.perplexity import EvalConfig, Evaluation, read_texts
from prunekit.models.source import as_source, load_model, load_tokenizer
from prunekit.models.tokenizer.same_tokens import first_difference
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.models.source import Source


def evaluate(
    model: Source | str,
    *,
    baseline: Source | str | None = None,
    text: str | Sequence[str] = "builtin",
    config: EvalConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> Evaluation:
    """Perplexity of ``model`` on each ``text`` (a file, ``builtin``, ``wikitext``, a dataset), and how far it is from
    ``baseline``, as `prunekit eval` measures it.

    Each model reads with its own tokenizer; token by token they are compared where that makes no difference. Raises
    PrunekitError where a model or a text can't be had, or logits are not finite.

    >>> evaluate("smaller", baseline="smollm2-135m").perplexity  # doctest: +SKIP
    21.4
    """
    config = config or EvalConfig()
    both = [as_source(each) for each in (model, baseline) if each is not None]
    tokenizers = [load_tokenizer(each) for each in both]
    apart = len(both) > 1 and first_difference(tokenizers[1], tokenizers[0]) is not None
    texts = [text] if isinstance(text, str) else list(text)
    own = read_texts(texts, tokenizers[0], config)
    read = [own, read_texts(texts, tokenizers[1], config) if apart else own][: len(both)]
    for source, tokens in zip(both, read, strict=True):
        check_length(config, source.config)
        for ids in tokens.values():
            check_tokens(ids, source.config)
    loaded = [load_model(each, dtype=dtype, device=device) for each in both]
    name = model_label(both[0].name)
    if len(both) == 1:
        return perplexity.evaluate(loaded[0], tokenizers[0], own, config, name=name)
    dense_name = model_label(both[1].name)
    if apart:
        first, second = (Read(*each) for each in zip(loaded, tokenizers, read, strict=True))
        return evaluate_apart(first, second, config, name=name, baseline_name=dense_name)
    return perplexity.evaluate(loaded[0], tokenizers[0], own, config, loaded[1], name=name, baseline_name=dense_name)
