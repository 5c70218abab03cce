"""How good a model is on text, and how far it has moved from the model it was pruned from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import check_length
from prunekit.data.sources import source_name
from prunekit.data.tokenised import bos
from prunekit.errors import PrunekitError
from prunekit.evaluation.baseline import Baseline, Beside, Kept, scored_states
from prunekit.evaluation.phases import reads
from prunekit.evaluation.token_scores import Paired, token_scores
from prunekit.evaluation.windows import EvalConfig, batches, eval_mode, read_texts, shortened, windows
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TextResult:
    """What was measured on one text.

    ``nll`` is the mean negative log-likelihood in nats over ``tokens_predicted`` tokens and ``perplexity`` its
    exponential; ``nll_standard_error`` comes from how windows differ (None with one window). Against the baseline:
    ``nll_increase`` with the standard error of the paired difference, ``kl`` the mean KL(baseline || model) in nats
    per token, ``agreement`` the share of tokens for which both models rank the same token first, both with standard
    errors of the same kind. Where the baseline's tokenizer gives other tokens these are None, and ``bits_per_byte``,
    the loss in bits a byte of UTF-8, compares the two.
    """

    text: str
    tokens_seen: int
    tokens_predicted: int
    windows: int
    length: int
    stride: int
    window_start: int | None
    nll: float
    nll_standard_error: float | None
    perplexity: float
    baseline_nll: float | None = None
    baseline_perplexity: float | None = None
    nll_increase: float | None = None
    nll_increase_standard_error: float | None = None
    kl: float | None = None
    agreement: float | None = None
    bits_per_byte: float | None = None
    baseline_bits_per_byte: float | None = None
    kl_standard_error: float | None = None
    agreement_standard_error: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on one or several texts."""

    model: str
    baseline: str | None
    dtype: str
    device: str
    results: tuple[TextResult, ...]

    @property
    def perplexity(self) -> float:
        """That on the first text."""
        return self.results[0].perplexity

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; a perplexity too large for a float is null."""
        data = asdict(self)
        for result in data["results"]:
            for name, value in result.items():
                if isinstance(value, float) and not math.isfinite(value):
                    result[name] = None
        return {**data, "results": list(data["results"])}


@dataclass
class _Sums:
    """Per-window sums: tokens, NLL of the model and of the baseline (float64 nats), KL, agreements."""

    tokens: list[int]
    nll: list[float]
    baseline_nll: list[float]
    kl: list[float]
    agree: list[float]
    kl_of_tokens: list[torch.Tensor]


def evaluate(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str] | Mapping[str, torch.Tensor],
    config: EvalConfig | None = None,
    baseline: Any = None,
    *,
    name: str = "model",
    baseline_name: str = "baseline",
    kl_of: dict[str, torch.Tensor] | None = None,
) -> Evaluation:
    """Perplexity of ``model`` on each text, and its distance from ``baseline`` where one is given.

    ``texts`` are sources (:func:`prunekit.data.sources.documents`) or token ids [n] by name. The baseline is a model,
    which sees each batch in turn with ``model``, or what was :class:`~prunekit.evaluation.baseline.Kept` of one on the
    same texts and windows. ``kl_of``, where it is given, gets KL of each token of each text, float64 [n], NaN where
    none was predicted. Raises PrunekitError where a text is too short, windows are longer than a model's positions,
    vocabularies differ or logits are not finite.
    """
    config = config or EvalConfig()
    check_length(config, model.config)
    if baseline is not None:
        check_length(config, baseline.config)
        check_vocabularies((name, model.config.vocab_size), (baseline_name, baseline.config.vocab_size))
    if isinstance(texts, str):
        texts = [texts]
    if not texts:
        raise PrunekitError("There is no text to evaluate on; name a file, 'builtin' or 'wikitext'.")
    tokens = texts if isinstance(texts, Mapping) else read_texts(texts, tokenizer, config)
    results = []
    start = None if tokenizer is None else bos(tokenizer)
    dense = baseline if baseline is None or isinstance(baseline, Kept) else Beside(baseline, baseline_name)
    with eval_mode(model), nullcontext() if baseline is None or dense is baseline else eval_mode(baseline):
        for text, ids in tokens.items():
            ids = shortened(ids, config, text)
            result, sums = _evaluate_text(model, dense, text, ids, config, start, name)
            results.append(result)
            if kl_of is not None and dense is not None:
                kl_of[text] = _placed(sums.kl_of_tokens, windows(len(ids), config.length, config.step))
    first = next(model.parameters())
    return Evaluation(
        model=name,
        baseline=None if baseline is None else baseline_name,
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
        results=tuple(results),
    )


def check_vocabularies(model: tuple[str, int], baseline: tuple[str, int]) -> None:
    """Raises PrunekitError where the sizes of the vocabularies of two models, given with their names, differ."""
    if model[1] != baseline[1]:
        raise PrunekitError(
            f"The vocabularies differ: {model[0]} has {model[1]:,} entries and {baseline[0]} {baseline[1]:,}; compare "
            "a model with the one it was pruned from."
        )


def _evaluate_text(
    model: Any,
    baseline: Baseline | None,
    text: str,
    ids: torch.Tensor,
    config: EvalConfig,
    start: int | None,
    name: str,
) -> tuple[TextResult, _Sums]:
    import torch

    spans = windows(len(ids), config.length, config.step)
    sums = _Sums([], [], [], [], [], [])
    with progress(reads(name, text), len(spans), tokens=len(ids)) as advance, torch.no_grad():
        for block, first in batches(ids, spans, config.batch_size, start):
            _score(model, baseline, block, first, sums, name, text)
            advance(len(block))
    total = sum(sums.tokens)
    nll, error = _mean(sums.nll, sums.tokens)
    seen = spans[-1][1]
    shared: dict[str, Any] = {
        "text": source_name(text),
        "tokens_seen": seen,
        "tokens_predicted": total,
        "windows": len(spans),
        "length": min(config.length, len(ids)),
        "stride": config.step,
        "window_start": start,
        "nll": nll,
        "nll_standard_error": error,
        "perplexity": _exp(nll),
    }
    if baseline is None:
        return TextResult(**shared), sums
    dense_nll, _ = _mean(sums.baseline_nll, sums.tokens)
    increase, increase_error = _mean([a - b for a, b in zip(sums.nll, sums.baseline_nll, strict=True)], sums.tokens)
    kl, kl_error = _mean(sums.kl, sums.tokens)
    agreement, agreement_error = _mean(sums.agree, sums.tokens)
    result = TextResult(
        **shared,
        baseline_nll=dense_nll,
        baseline_perplexity=_exp(dense_nll),
        nll_increase=increase,
        nll_increase_standard_error=increase_error,
        kl=kl,
        kl_standard_error=kl_error,
        agreement=agreement,
        agreement_standard_error=agreement_error,
    )
    return result, sums


def _placed(kl: Sequence[torch.Tensor], spans: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """``kl`` of the scored tokens of ``spans``, in their order, where they stand in the text."""
    import torch

    made = torch.full((spans[-1][1],), math.nan, dtype=torch.float64)
    made[torch.cat([torch.arange(begin + first, end) for begin, end, first in spans])] = torch.cat(list(kl))
    return made


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 709 else math.inf


def _mean(values: Sequence[float], weights: Sequence[int]) -> tuple[float, float | None]:
    """Sum over sum, and its standard error from the spread over windows (the ratio estimator; std / sqrt(n) where all
    windows predict as many tokens)."""
    total, count = sum(weights), len(values)
    mean = math.fsum(values) / total
    if count < 2:
        return mean, None
    spread = math.fsum((value - mean * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    return mean, math.sqrt(count / (count - 1) * spread) / total


def _score(
    model: Any, baseline: Baseline | None, block: torch.Tensor, first: int, sums: _Sums, name: str, text: str
) -> None:
    """Adds one batch of windows [B, L] to ``sums``, scoring the tokens from position ``first`` on."""
    from prunekit.models.head import Head

    targets = block[:, first:]
    hidden = scored_states(model, block, first, name)
    dense = None
    if baseline is not None:
        dense = Paired(baseline.name, baseline.head, baseline.states(text, sum(sums.tokens), block, first))
    made = token_scores(Head(model), hidden, targets.flatten(), dense, name=name, text=text)
    sums.tokens += [block.shape[1] - first] * len(block)
    if made.kl is not None:
        sums.kl_of_tokens.append(made.kl)
    for key, values in made._asdict().items():
        if values is not None:
            getattr(sums, key).extend(values.reshape(len(block), -1).sum(-1).tolist())
