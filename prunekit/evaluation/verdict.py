"""Whether a pruned model is fine, costs quality or is broken, in words that say why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.evaluation.perplexity import Evaluation, TextResult

FINE, COSTS, BROKEN = WORDS = ("fine", "costs quality", "broken")
"""The words, the best first."""

# In nats a token on text that neither pruning nor training has seen: a rule of thumb, of which docs/quality.md tells.
FINE_UP_TO, BROKEN_ABOVE = 0.1, 1.0
# Of the tokens that the dense model puts first, the share that must still be first.
LEAST_AGREEMENT = 0.3
SCALE = (
    f"Scale of the loss added, in nats a token: fine up to {FINE_UP_TO:g} (perplexity × "
    f"{math.exp(FINE_UP_TO):.1f}), costs quality up to {BROKEN_ABOVE:g} (× {math.exp(BROKEN_ABOVE):.1f}), broken "
    f"above, or where it puts the dense model's token first less often than {LEAST_AGREEMENT:.0%}."
)


@dataclass(frozen=True)
class Verdict:
    """``word`` is fine, costs quality or broken. ``loss_added`` in nats a token, with its ``standard_error``, and
    ``agreement`` are those of the ``text`` that it is worst on."""

    word: str
    text: str
    loss_added: float
    standard_error: float | None
    agreement: float

    @property
    def sentence(self) -> str:
        """The verdict with its reason, for people."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        times = math.exp(self.loss_added) if self.loss_added < 20 else math.inf
        said = f"× {times:,.2f}" if times < 1e6 else "× more than a million"
        return (
            f"{self.word[0].upper()}{self.word[1:]}: on {self.text} the loss is {self.loss_added:+.2f}{error} nats a "
            f"token against the dense model (perplexity {said}), and {self.agreement:.0%} of its first choices are the "
            "same."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: a loss that no float holds is null."""
        error = self.standard_error
        return {
            "verdict": self.word,
            "text": self.text,
            "loss_added": self.loss_added if math.isfinite(self.loss_added) else None,
            "standard_error": error if error is not None and math.isfinite(error) else None,
            "agreement": self.agreement,
            "fine_up_to": FINE_UP_TO,
            "broken_above": BROKEN_ABOVE,
            "least_agreement": LEAST_AGREEMENT,
        }


def verdict(texts: Evaluation | None) -> Verdict | None:
    """The verdict on a model by the text that it is worst on; None where there is no baseline that reads the same
    tokens."""
    found = [] if texts is None else [each for each in map(_of, texts.results) if each is not None]
    return max(found, key=lambda each: (WORDS.index(each.word), each.loss_added), default=None)


def word_of(loss_added: float, agreement: float | None) -> str:
    """The verdict on a loss, in nats a token, and the share of first choices that are the dense model's, where that is
    known."""
    if agreement is not None and agreement < LEAST_AGREEMENT:
        return BROKEN
    return FINE if loss_added <= FINE_UP_TO else COSTS if loss_added <= BROKEN_ABOVE else BROKEN


def _of(result: TextResult) -> Verdict | None:
    if result.nll_increase is None or result.agreement is None:
        return None
    added, agreement = result.nll_increase, result.agreement
    return Verdict(word_of(added, agreement), result.text, added, result.nll_increase_standard_error, agreement)
