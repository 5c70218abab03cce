"""How near a trained model is to the dense one, on texts that nobody saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.ablation import remember
from prunekit.evaluation.perplexity import EvalConfig, evaluate, read_texts
from prunekit.models.source import load_model, load_tokenizer, resolve


class Judge:
    """The model ``dense`` in ``dtype`` on ``device``, and what it says of ``max_tokens`` of each of ``texts``: computed
    once, and then every model is compared with it, as `prunekit eval --baseline` does."""

    def __init__(self, dense: str, texts: Sequence[str], max_tokens: int, dtype: str, device: str):
        source = resolve(dense)
        self._dtype, self._device = dtype, device
        self._tokenizer = load_tokenizer(source)
        self._config = EvalConfig(max_tokens=max_tokens)
        self._texts = read_texts(texts, self._tokenizer, self._config)
        self._dense = load_model(source, dtype=dtype, device=device)
        remember(self._dense.base_model)

    def __call__(self, model: Path) -> list[dict[str, Any]]:
        """One entry a text: kl, nll_increase and what else is measured."""
        made = load_model(resolve(str(model)), dtype=self._dtype, device=self._device)
        found: list[dict[str, Any]] = evaluate(made, self._tokenizer, self._texts, self._config, self._dense).to_dict()[
            "results"
        ]
        return found
