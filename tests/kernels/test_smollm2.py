"""The real model through the runtime, dense and pruned to irregular widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunekit.kernels import generate, optimize, report
from prunekit.models.source import Source, load_model, load_tokenizer

TEXTS = (
    "The three most common reasons why a bridge fails are",
    "def fibonacci(n):",
    "Once upon a time, in a village at the foot of the mountains, there lived an old clockmaker who had never once in "
    "his life been late. One morning he woke to find that every clock in his house had stopped, and",
)
NEW = 24


@pytest.mark.parametrize("which", ("dense", "pruned"))
def test_same_tokens_as_transformers(which: str, smollm2: Source, request: pytest.FixtureRequest) -> None:
    source = smollm2 if which == "dense" else request.getfixturevalue("pruned_smollm2")
    tokenizer: Any = load_tokenizer(source)
    model: Any = load_model(source, device="cpu", dtype="float32")
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    wanted = []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        wanted.append(out[0, len(prompt) :].tolist())
    optimize(model)
    assert generate(model, prompts, max_new_tokens=NEW).sequences == wanted
    assert [generate(model, [prompt], max_new_tokens=NEW).sequences[0] for prompt in prompts] == wanted
    assert report(model).extra_share < 0.02


def test_int8_stays_close(pruned_smollm2: Source) -> None:
    """Rounding to 8 bits hardly moves what the model predicts for real text (pruning itself: a KL of 0.3)."""
    ids = torch.tensor([load_tokenizer(pruned_smollm2)(TEXTS[2])["input_ids"]])
    model: Any = load_model(pruned_smollm2, device="cpu", dtype="float32")
    with torch.no_grad():
        wanted = model(ids).logits.log_softmax(-1)
        rounded = optimize(model, weights="int8")(ids).logits.log_softmax(-1)
    kl = (wanted.exp() * (wanted - rounded)).sum(-1).mean()
    assert 0 < kl < 0.02
