"""A look of about a minute at a model that was just made: is it still like the dense one, or broken?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.data.sources import is_file, source_name
from prunekit.errors import PrunekitError
from prunekit.evaluation.continuations import SHOWN, ContinuationConfig, Example
from prunekit.evaluation.run import compare
from prunekit.evaluation.verdict import BROKEN, Verdict
from prunekit.evaluation.windows import EvalConfig
from prunekit.models.source import as_source, pick_device

if TYPE_CHECKING:
    from prunekit.models.source import Source

# Short windows, so that even a few thousand tokens are windows enough for a standard error.
_LENGTH = 256
_FEWEST, _MOST = 2, 16
# What a forward pass reaches without effort on one core and on any GPU, in operations a second, and how many seconds
# of it the two models may take. Loading and writing come on top.
_CORE, _GPU, _SECONDS = 2e10, 2e13, 30.0
# Tokens of a prompt that is shown, and of what is written after it.
_PART = 32


@dataclass(frozen=True)
class Checked:
    """What was seen of a model beside the dense one: a ``verdict``, and ``examples`` of what both write. Without a
    verdict ``why`` says why; then it ``works`` as far as anyone knows, or its logits are no numbers."""

    verdict: Verdict | None
    why: str | None
    works: bool
    examples: tuple[Example, ...]
    tokens: int
    seconds: float
    windows: int = 0

    @property
    def is_broken(self) -> bool:
        return not self.works or (self.verdict is not None and self.verdict.word == BROKEN)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        found: dict[str, Any] = {"verdict": None if self.works else BROKEN, "why": self.why}
        if self.verdict is not None:
            found = self.verdict.to_dict()
        return {
            **found,
            "tokens": self.tokens,
            "windows": self.windows,
            "seconds": round(self.seconds, 1),
            "examples": [each.to_dict() for each in self.examples],
        }


def check_there(text: str) -> None:
    """Raises PrunekitError where ``text`` means a file and there is none: before hours of work, not after."""
    if is_file(text) and not Path(text).is_file():
        raise PrunekitError(f"There is no file {text} to check the result on; give another --check, or none.")


def check(
    model: Source | str,
    baseline: Source | str,
    *,
    text: str = "builtin",
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> Checked:
    """Look at ``model`` beside the ``baseline`` that it was pruned from: the loss it adds on the first few thousand
    tokens of ``text``, by default prose that no calibration sees, and two texts that both go on with.

    How many tokens follows from the size of the models and the machine, 512 to 4,096. What can't be looked at (no
    tokenizer, too short a text) is told in the result and not raised.

    >>> check("smaller", "smollm2-135m").verdict.sentence  # doctest: +SKIP
    'Costs quality: on builtin the loss is +0.24 ± 0.02 nats a token against the dense model (perplexity × 1.27), ...'
    """
    began = time.perf_counter()
    try:
        sources = as_source(model, revision=revision), as_source(baseline, revision=baseline_revision)
        # Some small models have few positions.
        most = min(getattr(each.config, "max_position_embeddings", None) or _LENGTH for each in sources)
        length, part = min(_LENGTH, most), min(_PART, most // 2)
        prompts = ContinuationConfig(prompts=SHOWN, prompt_length=part, new_tokens=part, batch_size=SHOWN, worst=0)
        config = EvalConfig(length, max_tokens=length * _windows(sources[1], device, length), batch_size=4)
        found = compare(
            sources[:1],
            baseline=sources[1],
            texts=[text],
            config=config,
            continuations=prompts,
            dtype=dtype,
            device=device,
        ).models[0]
    except PrunekitError as error:
        return Checked(None, str(error), True, (), 0, time.perf_counter() - began)
    if found.broken is not None:
        return Checked(None, found.broken, False, (), 0, time.perf_counter() - began)
    assert found.texts is not None
    why = None
    if found.verdict is None:
        why = f"{source_name(text)} is other tokens to the two models, whose tokenizers differ"
    result = found.texts.results[0]
    seconds = time.perf_counter() - began
    return Checked(found.verdict, why, True, found.examples, result.tokens_predicted, seconds, result.windows)


def _windows(dense: Source, device: str, length: int) -> int:
    """So many windows as both models read in the time there is: a pass is two operations a token and weight."""
    import torch

    place = pick_device(device)
    reached = _CORE * torch.get_num_threads() if place.type == "cpu" else _GPU
    return min(max(int(reached * _SECONDS / (4 * dense.shape.parameters * length)), _FEWEST), _MOST)
