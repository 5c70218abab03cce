"""How good a model is on text, and how far it has moved from the model it was pruned from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import check_length, text_tokens
from prunekit.data.sources import source_name
from prunekit.data.tokenised import bos
from prunekit.errors import PrunekitError
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.models.head import Head


@dataclass(frozen=True)
class EvalConfig:
    """Windows of ``length`` tokens start every ``stride`` tokens (default: ``length``, so they don't overlap).

    Every window scores only what no earlier one has scored, so a smaller stride gives each token more context.
    ``max_tokens`` cuts each text short. ``field`` and ``split`` are for JSONL files and datasets.
    """

    length: int = 512
    stride: int | None = None
    max_tokens: int | None = None
    batch_size: int = 4
    field: str = "text"
    split: str = "test"

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("stride", 1), ("max_tokens", 2), ("batch_size", 1)):
            value = getattr(self, name)
            if value is None and name in ("stride", "max_tokens"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PrunekitError(
                    f"{name.replace('_', ' ').capitalize()} must be a whole number of at least {least}, got {value!r}."
                )
        if self.stride is not None and self.stride > self.length:
            raise PrunekitError(
                f"A stride of {self.stride} would skip tokens between windows of {self.length}; "
                f"choose a stride of at most {self.length}."
            )

    @property
    def step(self) -> int:
        return self.stride or self.length


@dataclass(frozen=True)
class TextResult:
    """What was measured on one text.

    ``nll`` is the mean negative log-likelihood in nats over ``tokens_predicted`` tokens and ``perplexity`` its
    exponential; ``nll_standard_error`` comes from how windows differ (None with one window). Against the baseline:
    ``nll_increase`` with the standard error of the paired difference, ``kl`` the mean KL(baseline || model) in nats
    per token, ``agreement`` the share of tokens for which both models rank the same token first. Where the baseline's
    tokenizer gives other tokens these four are None, and ``bits_per_byte``, the loss in bits a byte of UTF-8, compares
    the two.
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


def evaluate(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str] | Mapping[str, torch.Tensor],
    config: EvalConfig | None = None,
    baseline: Any = None,
    *,
    name: str = "model",
    baseline_name: str = "baseline",
) -> Evaluation:
    """Perplexity of ``model`` on each text, and its distance from ``baseline`` where one is given.

    ``texts`` are sources (:func:`prunekit.data.sources.documents`) or token ids [n] by name. With a baseline both
    models stay in memory and see each batch in turn: keeping one model's logits instead would take 4 bytes times the
    vocabulary a token (60 GB for WikiText-2 at 49k entries), far more than a second set of weights. Raises
    PrunekitError where a text is too short, windows are longer than a model's positions, vocabularies differ or logits
    are not finite.
    """
    config = config or EvalConfig()
    check_length(config, model.config)
    if baseline is not None:
        check_length(config, baseline.config)
        if model.config.vocab_size != baseline.config.vocab_size:
            raise PrunekitError(
                f"The vocabularies differ: {name} has {model.config.vocab_size:,} entries and {baseline_name} "
                f"{baseline.config.vocab_size:,}; compare a model with the one it was pruned from."
            )
    if isinstance(texts, str):
        texts = [texts]
    if not texts:
        raise PrunekitError("There is no text to evaluate on; name a file, 'builtin' or 'wikitext'.")
    tokens = texts if isinstance(texts, Mapping) else read_texts(texts, tokenizer, config)
    results = []
    start = None if tokenizer is None else bos(tokenizer)
    with ExitStack() as modes:
        for each in (model, baseline):
            if each is not None:
                modes.enter_context(eval_mode(each))
        for text, ids in tokens.items():
            ids = ids[: config.max_tokens]
            if len(ids) < 2:
                raise PrunekitError(f"The text {source_name(text)} holds {len(ids)} tokens, and at least 2 are needed.")
            results.append(_evaluate_text(model, baseline, source_name(text), ids, config, start, name, baseline_name))
    first = next(model.parameters())
    return Evaluation(
        model=name,
        baseline=None if baseline is None else baseline_name,
        dtype=str(first.dtype).removeprefix("torch."),
        device=str(first.device),
        results=tuple(results),
    )


def read_texts(texts: Sequence[str], tokenizer: Any, config: EvalConfig) -> dict[str, torch.Tensor]:
    """Token ids [n] of each source, as :func:`evaluate` takes them; lets a caller find a bad text before it loads a
    model. Raises PrunekitError where a text can't be read."""
    return {
        text: text_tokens(text, tokenizer, config.max_tokens, field=config.field, split=config.split) for text in texts
    }


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Evaluating in the middle of training leaves the model as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def windows(count: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, end, first scored position within the window) for ``count`` tokens.

    All windows are full; tokens left at the end are dropped. A text shorter than ``length`` is one window. The first
    token of a window is never scored, because nothing precedes it there.
    """
    length = min(length, count)
    made = []
    scored = 0
    for start in range(0, count - length + 1, stride):
        first = max(scored, start + 1)
        made.append((start, start + length, first - start))
        scored = start + length
    return made


def _evaluate_text(
    model: Any,
    baseline: Any,
    text: str,
    ids: torch.Tensor,
    config: EvalConfig,
    start: int | None,
    name: str,
    baseline_name: str,
) -> TextResult:
    import torch

    spans = windows(len(ids), config.length, config.step)
    sums = _Sums([], [], [], [], [])
    # The first window scores from another position than those that overlap it, so it goes by itself.
    same_first = spans[0][2] == spans[-1][2]
    batches = [spans] if same_first else [spans[:1], spans[1:]]
    with progress(f"Evaluating on {text}", len(spans)) as advance, torch.no_grad():
        for group in batches:
            for at in range(0, len(group), config.batch_size):
                chunk = group[at : at + config.batch_size]
                block = torch.stack([ids[begin:end] for begin, end, _ in chunk])
                if start is not None:
                    block[:, 0] = start
                _score(model, baseline, block, chunk[0][2], sums, name, baseline_name, text)
                advance(len(chunk))
    total = sum(sums.tokens)
    nll, error = _mean(sums.nll, sums.tokens)
    seen = spans[-1][1]
    shared: dict[str, Any] = {
        "text": text,
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
        return TextResult(**shared)
    dense_nll, _ = _mean(sums.baseline_nll, sums.tokens)
    increase, increase_error = _mean([a - b for a, b in zip(sums.nll, sums.baseline_nll, strict=True)], sums.tokens)
    return TextResult(
        **shared,
        baseline_nll=dense_nll,
        baseline_perplexity=_exp(dense_nll),
        nll_increase=increase,
        nll_increase_standard_error=increase_error,
        kl=sum(sums.kl) / total,
        agreement=sum(sums.agree) / total,
    )


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
    model: Any, baseline: Any, block: torch.Tensor, first: int, sums: _Sums, name: str, baseline_name: str, text: str
) -> None:
    """Adds one batch of windows [B, L] to ``sums``, scoring the tokens from position ``first`` on."""
    import torch

    from prunekit.models.head import Head, hidden_states
    from prunekit.utils.numerics.finite import blame_layer, is_finite

    targets = block[:, first:]
    count = targets.numel()

    # Logits at position t predict token t + 1.
    def run(model: Any, name: str) -> torch.Tensor:
        made = hidden_states(model, block)
        if not is_finite(made):
            blame_layer(model, lambda: hidden_states(model, block), name)
        return made[:, first - 1 : -1].flatten(0, 1)

    hidden = run(model, name)
    dense_hidden = None if baseline is None else run(baseline, baseline_name)
    targets = targets.flatten().to(hidden.device)
    kept: dict[str, list[torch.Tensor]] = {"nll": [], "baseline_nll": [], "kl": [], "agree": []}
    head, dense_head = Head(model), None if baseline is None else Head(baseline)
    for at in range(0, count, head.rows):
        part = slice(at, at + head.rows)
        log_probs = _log_probs(head, hidden[part], name, text)
        kept["nll"].append(-log_probs.gather(1, targets[part, None])[:, 0].cpu().double())
        if dense_hidden is None or dense_head is None:
            continue
        dense = _log_probs(dense_head, dense_hidden[part], baseline_name, text).to(log_probs.device)
        kept["baseline_nll"].append(-dense.gather(1, targets[part, None])[:, 0].cpu().double())
        kept["agree"].append((dense.argmax(-1) == log_probs.argmax(-1)).cpu().double())
        # Where the baseline gives a token no probability at all its term is 0, not 0 · inf.
        kept["kl"].append(torch.where(dense.isneginf(), 0.0, dense.exp() * (dense - log_probs)).sum(-1).cpu().double())
    sums.tokens += [block.shape[1] - first] * len(block)
    for key, values in kept.items():
        if values:
            getattr(sums, key).extend(torch.cat(values).reshape(len(block), -1).sum(-1).tolist())


def _log_probs(head: Head, hidden: torch.Tensor, name: str, text: str) -> torch.Tensor:
    log_probs = head(hidden).log_softmax(-1)
    # One NaN or +inf logit makes its whole row NaN.
    if log_probs.isnan().any():
        raise PrunekitError(
            f"{name} gave logits that are not numbers on {text}; its weights are broken or its dtype overflows. "
            "Try --dtype float32, and if that does not help make the checkpoint again."
        )
    return log_probs
