"""What a model writes: how much it repeats itself, and how far it follows the model it was pruned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prunekit.data.tokenised import bos
from prunekit.errors import PrunekitError
from prunekit.evaluation.phases import continues
from prunekit.evaluation.windows import eval_mode
from prunekit.models.runner import TorchRunner
from prunekit.utils.numerics.finite import NotFinite
from prunekit.utils.numerics.repetition import NGRAM, ngrams, repeated_share
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

# What is shown of continuations side by side.
SHOWN = 2

Continuations = Sequence[Sequence[int]]
"""The tokens that one model wrote after each prompt, at least one each."""


@dataclass(frozen=True)
class ContinuationConfig:
    """``prompts`` blocks of ``prompt_length`` tokens, spread evenly over a text, are continued by ``new_tokens``;
    beside a baseline, so are the ``worst`` blocks, after which it is farthest (:mod:`prunekit.evaluation.worst`)."""

    prompts: int = 32
    prompt_length: int = 64
    new_tokens: int = 64
    batch_size: int = 8
    worst: int = 10

    def __post_init__(self) -> None:
        for name, least in (
            ("prompts", 1),
            ("prompt_length", 2),
            ("new_tokens", NGRAM),
            ("batch_size", 1),
            ("worst", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PrunekitError(
                    f"{name.replace('_', ' ').capitalize()} must be a whole number of at least {least}, got {value!r}."
                )


# Two short texts, which a glimpse at both models shows: of the first text alone, and no figures follow from them.
GLIMPSE = ContinuationConfig(prompts=SHOWN, prompt_length=32, new_tokens=32, batch_size=SHOWN, worst=0)


@dataclass(frozen=True)
class Fluency:
    """What one model wrote.

    ``repetition`` is the share of 4-grams of a continuation that stood in it before, 1 - unique / all, averaged over
    the continuations (rep-4 of Welleck et al., arXiv 1908.04319), with its standard error; None where all ended before
    the fourth token. ``distinct_1`` and ``distinct_2`` are unique / all n-grams over all continuations together (Li et
    al., arXiv 1510.03055). ``length`` is the mean number of tokens up to and with the end token.
    """

    repetition: float | None
    repetition_standard_error: float | None
    distinct_1: float
    distinct_2: float | None
    length: float


@dataclass(frozen=True)
class Example:
    """A prompt of ``text`` and what two models wrote after it; ``baseline`` is None where there is none."""

    prompt: str
    model: str
    baseline: str | None
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


@dataclass(frozen=True)
class GenerationQuality:
    """Greedy continuations of one text's prompts, and how two models' agree.

    ``common_prefix`` is the mean number of tokens before the two part (``new_tokens`` where they never do, unless both
    end earlier), ``equal_tokens`` the share of positions with the same token, averaged over prompts (a position that
    only one reached counts as different), ``identical`` the share of prompts whose continuations are the same.
    """

    text: str
    prompts: int
    prompt_length: int
    new_tokens: int
    model: Fluency
    baseline: Fluency | None = None
    common_prefix: float | None = None
    common_prefix_standard_error: float | None = None
    equal_tokens: float | None = None
    equal_tokens_standard_error: float | None = None
    identical: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def generation_quality(
    model: Any,
    tokenizer: Any,
    tokens: torch.Tensor,
    config: ContinuationConfig | None = None,
    baseline: Any = None,
    *,
    text: str = "text",
    name: str = "model",
    baseline_name: str = "baseline",
) -> GenerationQuality:
    """Continue prompts from ``tokens``, int64 [n], greedily with ``model``, and with ``baseline`` where one is given.

    Each prompt starts with BOS where the tokenizer starts texts so. A continuation ends with the model's end token.
    Raises PrunekitError where the text is too short, a model has too few positions, or logits are not finite.
    """
    config = config or ContinuationConfig()
    for each, called in ((model, name), (baseline, baseline_name)):
        if each is not None:
            check_room(each.config, called, config)
    made = continued(model, tokenizer, tokens, config, name=name, text=text)
    if baseline is None:
        return compare(made, config, text=text)
    wanted = continued(baseline, tokenizer, tokens, config, name=baseline_name, text=text)
    return compare(made, config, wanted, text=text)


def compare(
    made: Continuations, config: ContinuationConfig, wanted: Continuations | None = None, *, text: str = "text"
) -> GenerationQuality:
    """How good the continuations ``made`` by :func:`continued` are, and how far they follow those that are ``wanted``,
    of another model on the same text."""
    shared: dict[str, Any] = {
        "text": text,
        "prompts": config.prompts,
        "prompt_length": config.prompt_length,
        "new_tokens": config.new_tokens,
        "model": fluency(made),
    }
    if wanted is None:
        return GenerationQuality(**shared)
    pairs = list(zip(made, wanted, strict=True))
    prefix, prefix_error = _mean([float(common_prefix(*pair)) for pair in pairs])
    equal, equal_error = _mean([equal_share(*pair) for pair in pairs])
    return GenerationQuality(
        **shared,
        baseline=fluency(wanted),
        common_prefix=prefix,
        common_prefix_standard_error=prefix_error,
        equal_tokens=equal,
        equal_tokens_standard_error=equal_error,
        identical=sum(a == b for a, b in pairs) / len(pairs),
    )


def examples(
    tokenizer: Any,
    tokens: torch.Tensor,
    config: ContinuationConfig,
    made: Continuations,
    wanted: Continuations | None,
    *,
    text: str = "text",
) -> tuple[Example, ...]:
    """The first few prompts of the text ``tokens``, int64 [n], with what :func:`continued` made of them."""
    prompts = pick_prompts(tokens, config, None, text)[:SHOWN]

    def words(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return tuple(
        Example(words(prompt), words(made[place]), None if wanted is None else words(wanted[place]), text)
        for place, prompt in enumerate(prompts.tolist())
    )


def pick_prompts(tokens: torch.Tensor, config: ContinuationConfig, start: int | None, text: str) -> torch.Tensor:
    """Prompts, int64 [prompts, prompt_length], that don't overlap. Raises PrunekitError where the text is too short."""
    import torch

    there = len(tokens) // config.prompt_length
    if there < config.prompts:
        raise PrunekitError(
            f"The text {text} holds {len(tokens):,} tokens, and {config.prompts} prompts of {config.prompt_length} "
            f"need {config.prompts * config.prompt_length:,}; give more text, or fewer or shorter prompts."
        )
    blocks = tokens[: there * config.prompt_length].reshape(there, config.prompt_length)
    prompts = blocks[torch.arange(config.prompts) * there // config.prompts].clone()
    if start is not None:
        prompts[:, 0] = start
    return prompts


def fluency(continuations: Continuations) -> Fluency:
    """How much continuations repeat themselves."""
    shares = [share for each in continuations if (share := repeated_share(each)) is not None]
    repetition, error = _mean(shares) if shares else (None, None)
    distinct_1 = _distinct(continuations, 1)
    assert distinct_1 is not None
    return Fluency(
        repetition=repetition,
        repetition_standard_error=error,
        distinct_1=distinct_1,
        distinct_2=_distinct(continuations, 2),
        length=sum(map(len, continuations)) / len(continuations),
    )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens the two begin with in common."""
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))


def equal_share(a: Sequence[int], b: Sequence[int]) -> float:
    """The share of positions, of those that the longer one has, at which both have the same token."""
    return sum(left == right for left, right in zip(a, b, strict=False)) / max(len(a), len(b))


def _distinct(continuations: Continuations, n: int) -> float | None:
    grams = [gram for each in continuations for gram in ngrams(each, n)]
    return len(set(grams)) / len(grams) if grams else None


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def check_room(model_config: Any, name: str, config: ContinuationConfig) -> None:
    """Raises PrunekitError where prompt and continuation are more than the positions the model was made for."""
    most = getattr(model_config, "max_position_embeddings", None)
    if most is not None and config.prompt_length + config.new_tokens > most:
        raise PrunekitError(
            f"Prompts of {config.prompt_length} and {config.new_tokens} new tokens are more than the {most} positions "
            f"{name} was made for; ask for fewer."
        )


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end what a model writes."""
    for owner in (getattr(model, "generation_config", None), model.config, tokenizer):
        end = getattr(owner, "eos_token_id", None)
        if end is not None:
            return set(end) if isinstance(end, (list, tuple)) else {end}
    return set()


def continued(
    model: Any, tokenizer: Any, tokens: torch.Tensor, config: ContinuationConfig, *, name: str, text: str
) -> Continuations:
    """What ``model`` writes after the prompts of the text ``tokens``, int64 [n]; :func:`generation_quality` says how.

    Raises PrunekitError where the text is too short, or logits are not finite.
    """
    prompts = pick_prompts(tokens, config, None if tokenizer is None else bos(tokenizer), text)
    return go_on(model, tokenizer, prompts, config, continues(name, text), name=name, text=text)


def go_on(
    model: Any,
    tokenizer: Any,
    prompts: torch.Tensor,
    config: ContinuationConfig,
    title: str,
    *,
    name: str,
    text: str,
) -> Continuations:
    """What ``model`` writes after each of ``prompts``, int64 [n, prompt_length]. ``title`` is that of the phase. Raises
    PrunekitError where logits are not finite."""
    import numpy as np

    ends = end_tokens(model, tokenizer)
    made: list[list[int]] = []
    with eval_mode(model), progress(title, len(prompts)) as advance:
        runner = TorchRunner(model)
        for at in range(0, len(prompts), config.batch_size):
            batch = prompts[at : at + config.batch_size].numpy()
            # One NaN or +inf logit is enough to make the most likely token mean nothing.
            if at == 0 and not (runner.start(batch) < np.inf).all():
                raise NotFinite(
                    f"{name} gave logits that are not numbers on {text}; its weights are broken or its dtype "
                    "overflows. Try --dtype float32, and if that does not help make the checkpoint again."
                )
            made += [_until(row, ends) for row in runner.greedy(batch, config.new_tokens).tokens.tolist()]
            advance(len(batch))
    return made


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """``tokens`` up to and with the first end token."""
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    return tokens
