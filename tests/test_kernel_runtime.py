from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import MODEL_TYPES, VOCAB, one_thread, random_plan, rebuilt_model, tiny_config, tiny_model

from prunekit.errors import PrunekitError
from prunekit.families import FAMILIES
from prunekit.kernels import Runtime, generate, optimize, report, restore
from prunekit.kernels.sampling import Sampling

PROMPTS = [[5, 9, 2, 7, 7, 31, 4, 88, 12, 3, 64, 9, 101], [17, 3], [44, 6, 90, 12, 1, 77, 8]]
NEW = 20


@pytest.fixture(autouse=True)
def single_thread() -> Any:
    with one_thread():
        yield


def model_of(model_type: str, pruned: bool, **fields: Any) -> Any:
    model = tiny_model(model_type, **fields)
    # Softcapping is left out by sdpa in the oldest supported transformers.
    if pruned:
        model = rebuilt_model(model, random_plan(FAMILIES[model_type].shape(model.config), seed=3))
    implementation = FAMILIES[model_type].attn_implementation
    if implementation:
        model.set_attn_implementation(implementation)
    return model


def expected(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """What transformers' own generate gives, one prompt at a time."""
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)
        out.append(made[0, len(prompt) :].tolist())
    return out


@pytest.mark.parametrize("pruned", (False, True), ids=("dense", "pruned"))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_same_tokens_as_transformers(model_type: str, pruned: bool) -> None:
    """Prompts shorter and longer than the sliding window, in one batch of a size that is no bucket."""
    model = model_of(model_type, pruned)
    wanted = expected(model, PROMPTS)
    made = generate(optimize(model), PROMPTS, max_new_tokens=NEW)
    assert made.sequences == wanted


@pytest.mark.parametrize("model_type", ("llama", "qwen2", "qwen3", "smollm3"))
def test_biases(model_type: str) -> None:
    model = model_of(model_type, True, bias=True)
    wanted = expected(model, PROMPTS)
    assert generate(optimize(model), PROMPTS, max_new_tokens=NEW).sequences == wanted
