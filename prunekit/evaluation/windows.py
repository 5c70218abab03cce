"""How a text is read: as token ids, in windows, each of which scores what no earlier one has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import text_tokens
from prunekit.data.sources import source_name, text_labels
from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    import torch


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


def read_texts(texts: Sequence[str], tokenizer: Any, config: EvalConfig) -> dict[str, torch.Tensor]:
    """Token ids [n] of each source by its label, as :func:`~prunekit.evaluation.perplexity.evaluate` takes them; lets a
    caller find a bad text before it loads a model. Raises PrunekitError where a text can't be read."""
    return {
        label: text_tokens(text, tokenizer, config.max_tokens, field=config.field, split=config.split)
        for label, text in zip(text_labels(texts), texts, strict=True)
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


def shortened(ids: torch.Tensor, config: EvalConfig, text: str) -> torch.Tensor:
    """What of the tokens ``ids`` [n] is read. Raises PrunekitError where too few are left to predict one."""
    ids = ids[: config.max_tokens]
    if len(ids) < 2:
        raise PrunekitError(f"The text {source_name(text)} holds {len(ids)} tokens, and at least 2 are needed.")
    return ids


def batches(
    ids: torch.Tensor, spans: Sequence[tuple[int, int, int]], size: int, start: int | None
) -> Iterator[tuple[torch.Tensor, int]]:
    """The windows ``spans`` of ``ids``, ``size`` of them at a time: tokens [B, L], and the first position of each that
    is scored. Each begins with the token ``start`` where there is one."""
    import torch

    # The first window scores from another position than those that overlap it, so it goes by itself.
    alike = [spans] if spans[0][2] == spans[-1][2] else [spans[:1], spans[1:]]
    for group in alike:
        for at in range(0, len(group), size):
            chunk = group[at : at + size]
            block = torch.stack([ids[begin:end] for begin, end, _ in chunk])
            if start is not None:
                block[:, 0] = start
            yield block, chunk[0][2]
