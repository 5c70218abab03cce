"""How good a candidate is on the evaluation text, beside the dense model: measured in memory, nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.in_memory import pruned_in_memory
from prunekit.data.calibration import check_length, check_tokens
from prunekit.data.tokenised import bos
from prunekit.errors import PrunekitError
from prunekit.evaluation.baseline import Kept as KeptStates
from prunekit.evaluation.baseline import keep
from prunekit.evaluation.perplexity import TextResult, evaluate
from prunekit.evaluation.windows import EvalConfig, read_texts, shortened
from prunekit.pipeline.candidates.kept import Measured
from prunekit.utils.files.cache import tensors_digest
from prunekit.utils.names import pathless
from prunekit.utils.numerics.finite import NotFinite

if TYPE_CHECKING:
    import torch

    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.plan import Plan


class Judge:
    """Measures models on one ``text`` beside the ``dense`` one, which reads it once, when something is first measured.

    Raises PrunekitError where the text can't be read, or does not fit the model, before that is loaded.
    """

    def __init__(self, dense: DenseModel, tokenizer: Any, text: str, config: EvalConfig):
        self.text, self.config = text, config
        self._dense, self._tokenizer = dense, tokenizer
        check_length(config, dense.source.config)
        (ids,) = read_texts([text], tokenizer, config).values()
        check_tokens(ids, dense.source.config)
        self.ids: torch.Tensor = shortened(ids, config, text)

    @cached_property
    def digest(self) -> str:
        """Of the tokens and how they are read."""
        return tensors_digest([("ids", self.ids)], repr(replace(self.config, max_tokens=None)))

    def of_dense(self) -> Measured:
        """The dense model alone."""
        model = self._dense.share()
        return Measured(self._score(model, None))

    def of(self, model: Any) -> Measured:
        """``model`` beside the dense one. That its logits are no numbers is told, not raised."""
        try:
            return Measured(self._score(model, self._said))
        except NotFinite as error:
            return failed(error)

    @cached_property
    def _said(self) -> KeptStates:
        """What the dense model says of the text, without its weights."""
        # Its head stays in memory, so the model is one of its own, and not shared with what cuts it.
        model = self._dense.share()
        return keep(model, {self.text: self.ids}, self.config, bos(self._tokenizer), "the dense model")

    def prepare(self) -> None:
        """Let the dense model read, before it is used up."""
        _ = self._said

    def _score(self, model: Any, baseline: KeptStates | None) -> TextResult:
        return evaluate(model, self._tokenizer, {self.text: self.ids}, self.config, baseline).results[0]


def solved_in_memory(
    source: Source,
    plan: Plan,
    solve: Callable[[], tuple[Plan, Mapping[str, torch.Tensor] | None]],
    *,
    dtype: str,
    device: str,
) -> tuple[Any, Plan, Mapping[str, torch.Tensor] | None, float]:
    """The model that `prunekit prune` would write, the plan and the weights that make it, and the seconds it took."""
    began = time.perf_counter()
    plan, weights = solve()
    model = pruned_in_memory(source, plan, weights, dtype=dtype, device=device)
    return model, plan, weights, time.perf_counter() - began


def failed(error: PrunekitError) -> Measured:
    """What there is to tell of a candidate that could not be made."""
    return Measured(why=pathless(str(error)), broken=isinstance(error, NotFinite))
