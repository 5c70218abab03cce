"""Which token comes next: the highest logit, or one drawn from a trimmed distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prunekit.errors import PrunekitError

# Colder, logits leave float32's range; this cold, the most likely token is all that is drawn.
_COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Draw from softmax(logits / temperature), cut to the ``top_k`` most likely tokens and then to the fewest whose
    probabilities add up to ``top_p`` (Holtzman et al. 2020, nucleus sampling). The same ``seed`` gives the same draws
    on the same machine; None takes a new one. Raises PrunekitError where a value is out of range."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _COLDEST <= self.temperature < math.inf:
            raise PrunekitError(
                f"The temperature must be a number of at least {_COLDEST}, got {self.temperature}; for the most likely "
                "token don't sample."
            )
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise PrunekitError(f"top_k must be a whole number of at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise PrunekitError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise PrunekitError(f"The seed must be at least 0 and below 2^63, got {self.seed}.")

    def generator(self, device: torch.device) -> torch.Generator:
        """The source of randomness of one generation."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, V] → [B, V] float32, rows sum to 1."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ordered, index = logits.softmax(-1).sort(descending=True)
            # A token stays while those before it have not reached top_p; the first always does.
            cut = ordered.cumsum(-1) - ordered >= self.top_p
            logits = logits.masked_fill(cut.scatter(-1, index, cut), float("-inf"))
        return logits.softmax(-1)

    def draw(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """[B, V] → [B] int64."""
        # What torch.multinomial does, but that waits for the GPU to check its argument.
        waits = torch.empty_like(logits, dtype=torch.float32).exponential_(generator=generator)
        return (self.probabilities(logits) / waits).argmax(-1)
