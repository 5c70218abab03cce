"""Verdicts: where the borders lie, which text decides, and what is said."""

from __future__ import annotations

import json
import math

import pytest

from prunekit.evaluation.perplexity import Evaluation, TextResult
from prunekit.evaluation.verdict import BROKEN, BROKEN_ABOVE, COSTS, FINE, FINE_UP_TO, LEAST_AGREEMENT, SCALE, verdict


def result(
    added: float | None, agreement: float | None = 0.8, text: str = "text", error: float | None = 0.02
) -> TextResult:
    numbers = {"nll": 3.0, "nll_standard_error": 0.1, "perplexity": 20.0}
    read = {"tokens_seen": 512, "tokens_predicted": 510, "windows": 2, "length": 256, "stride": 256}
    return TextResult(
        text,
        window_start=None,
        **read,  # type: ignore[arg-type]
        **numbers,
        nll_increase=added,
        nll_increase_standard_error=error,
        agreement=agreement,
    )


def report(*results: TextResult) -> Evaluation:
    return Evaluation("model", "dense", "float32", "cpu", results)


@pytest.mark.parametrize(
    ("added", "agreement", "word"),
    [
        (-0.02, 1.0, FINE),
        (FINE_UP_TO, 0.9, FINE),
        (0.11, 0.9, COSTS),
        (BROKEN_ABOVE, 0.5, COSTS),
        (1.01, 0.5, BROKEN),
        (9.0, 0.0, BROKEN),
        (math.inf, 0.0, BROKEN),
        (math.nan, 0.0, BROKEN),
        # Another model, however good.
        (0.0, LEAST_AGREEMENT - 0.01, BROKEN),
    ],
)
def test_borders(added: float, agreement: float, word: str) -> None:
    found = verdict(report(result(added, agreement)))
    assert found is not None and found.word == word
    assert found.sentence.lower().startswith(word) and found.to_dict()["verdict"] == word
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_worst_text_decides() -> None:
    found = verdict(report(result(0.05, text="ours"), result(0.4, text="theirs"), result(0.3, text="other")))
    assert found is not None and (found.word, found.text) == (COSTS, "theirs")
    found = verdict(report(result(0.4, text="ours"), result(0.2, 0.1, text="another language")))
    assert found is not None and (found.word, found.text) == (BROKEN, "another language")


def test_without_a_baseline_there_is_none() -> None:
    assert verdict(None) is None and verdict(report(result(None, None))) is None


def test_what_is_said() -> None:
    found = verdict(report(result(0.2366, 0.754)))
    assert found is not None
    assert found.sentence == (
        "Costs quality: on text the loss is +0.24 ± 0.02 nats a token against the dense model (perplexity × 1.27), and "
        "75% of its first choices are the same."
    )
    assert "fine up to 0.1 (perplexity × 1.1), costs quality up to 1 (× 2.7)" in SCALE and "30%" in SCALE
    destroyed = verdict(report(result(20.5, 0.0, error=None)))
    assert destroyed is not None and "+20.50 nats" in destroyed.sentence and "more than a million" in destroyed.sentence
