"""How well the user's own text is predicted before and after: by the dense model, the pruned one, and the export in its
runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.evaluation.phases import reads
from prunekit.export.target import Job
from prunekit.models.runner import Array, Runner
from prunekit.models.source import Source
from prunekit.utils.files.hashes import token_ids_sha256
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label

# A text is read no further, in windows of so many tokens.
MOST_TOKENS, WINDOW = 2048, 256
# PyTorch's logits of so many windows are in memory together.
_TOGETHER = 4
_KINDS = ("dense", "pruned", "exported")


@dataclass(frozen=True)
class OwnText:
    """Windows of token ids, int64 [n] each, of the text called ``name``; ``sha256`` is that of the ids."""

    name: str
    windows: tuple[Array, ...]
    sha256: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))


@dataclass(frozen=True)
class Loss:
    """Mean loss in nats a token with its standard error (from how windows differ; None with one window), and its
    exponential. Where it was not measured all are None, and ``why`` says why not."""

    nll: float | None = None
    standard_error: float | None = None
    perplexity: float | None = None
    why: str | None = None

    def to_dict(self) -> dict[str, Any]:
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return {"status": "measured" if self.why is None else "not measured", **data}

    @property
    def said(self) -> str:
        """ "29.60", or "not measured: why"."""
        return f"{self.perplexity:.2f}" if self.perplexity is not None else f"not measured: {self.why}"


@dataclass(frozen=True)
class TextQuality:
    """Losses on the first ``tokens`` tokens of a text, ``predicted`` of which are scored, in windows that begin anew.
    ``dense`` and ``pruned`` are computed by PyTorch in float32, ``exported`` by the export's runtime, with the weights
    as it stores them."""

    text: str
    tokens: int
    predicted: int
    window: int
    tokens_sha256: str
    dense: Loss
    pruned: Loss
    exported: Loss

    @property
    def losses(self) -> Iterator[tuple[str, Loss]]:
        """Each form's name and its loss."""
        return ((name, getattr(self, name)) for name in _KINDS)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), **{name: loss.to_dict() for name, loss in self.losses}}


def own_text(job: Job, text: str) -> OwnText:
    """What is read of ``text``, a source as :func:`prunekit.data.sources.documents` takes them. Raises PrunekitError
    where it can't be read, holds fewer than two tokens, or the checkpoint has no tokenizer."""
    from prunekit.data.calibration import text_tokens
    from prunekit.data.sources import source_name
    from prunekit.data.tokenised import bos

    ids = np.asarray(text_tokens(text, job.tokenizer, MOST_TOKENS), dtype=np.int64)[:MOST_TOKENS]
    length = min(WINDOW, job.context_length, len(ids))
    if length < 2:
        raise PrunekitError(f"The text {source_name(text)} holds {len(ids)} tokens, and at least 2 are needed.")
    start = bos(job.tokenizer)
    windows = []
    for begin in range(0, len(ids) - length + 1, length):
        window = ids[begin : begin + length].copy()
        if start is not None:
            window[0] = start
        windows.append(window)
    return OwnText(source_name(text), tuple(windows), token_ids_sha256(np.concatenate(windows)))


def check_baseline(job: Job, dense: Source) -> None:
    """Raises PrunekitError where ``dense`` can't have been what the job's checkpoint was pruned from."""
    if dense.shape.vocab_size != job.source.shape.vocab_size:
        raise PrunekitError(
            f"{dense.name} has a vocabulary of {dense.shape.vocab_size:,} and {job.source.name} of "
            f"{job.source.shape.vocab_size:,}; give the model that it was pruned from as --baseline."
        )


def in_runtime(runner: Runner, given: OwnText) -> Loss:
    """The loss of an open export. What it can't compute is not measured, and why is said."""
    try:
        with progress(f"the export reads {given.name}", len(given.windows)) as advance:
            losses = []
            for window in given.windows:
                losses.append(_window_loss(runner.logits(window), window))
                advance()
    except PrunekitError as error:
        return Loss(why=str(error).rstrip("."))
    return _loss(losses)


def in_pytorch(source: Source | None, given: OwnText, why: str = "") -> Loss:
    """The loss of a checkpoint in float32; where there is none it is not measured, for the reason ``why``."""
    if source is None:
        return Loss(why=why)
    import torch

    from prunekit.models.stored.streamed import StreamedModel

    model = StreamedModel(source, torch.float32)
    losses: list[float] = []
    groups = [given.windows[at : at + _TOGETHER] for at in range(0, len(given.windows), _TOGETHER)]
    with progress(reads(model_label(source.name), given.name), len(groups) * source.shape.num_hidden_layers) as advance:
        for group in groups:
            losses += _losses(model.logits, group, advance)
    return _loss(losses)


def _losses(logits: Callable[..., list[Array]], group: Sequence[Array], advance: Callable[[], None]) -> Iterator[float]:
    return (_window_loss(made, ids) for made, ids in zip(logits(group, advance), group, strict=True))


def text_quality(given: OwnText, dense: Loss, pruned: Loss, exported: Loss) -> TextQuality:
    """The three together."""
    count = len(given.windows)
    return TextQuality(
        given.name, given.tokens, given.tokens - count, len(given.windows[0]), given.sha256, dense, pruned, exported
    )


def _window_loss(logits: Array, ids: Array) -> float:
    """Mean of -log p(next token), float64 nats, over all tokens of a window but the first."""
    rows = logits[:-1].astype(np.float64)
    top = rows.max(-1)
    spread = np.log(np.exp(rows - top[:, None]).sum(-1)) + top
    return float((spread - rows[np.arange(len(ids) - 1), ids[1:]]).mean())


def _loss(windows: Sequence[float]) -> Loss:
    """All windows are of one length, so that their mean is that of the tokens."""
    if not all(math.isfinite(each) for each in windows):
        return Loss(why="it gives logits that are not finite numbers")
    nll = math.fsum(windows) / len(windows)
    error = None
    if len(windows) > 1:
        error = math.sqrt(math.fsum((each - nll) ** 2 for each in windows) / (len(windows) - 1) / len(windows))
    return Loss(nll, error, math.exp(min(nll, 700.0)))
