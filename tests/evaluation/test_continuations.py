from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.evaluation.continuations import (
    ContinuationConfig,
    common_prefix,
    equal_share,
    fluency,
    generation_quality,
    pick_prompts,
    repeated_share,
)
from tests.support.command import Command, save_tiny, write_text
from tests.support.tiny import MODEL_TYPES, VOCAB, one_thread, tiny_model
from tests.support.tiny_text import BOS, tiny_tokenizer

CONFIG = ContinuationConfig(prompts=5, prompt_length=8, new_tokens=12, batch_size=2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def random_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def naive(model, prompt, count):
    """Greedy decoding of one prompt without a cache."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
    return ids[len(prompt) :].tolist()


def test_repetition_by_hand():
    assert repeated_share([1, 2, 3, 4, 5, 6, 7]) == 0
    assert repeated_share([1] * 8) == pytest.approx(1 - 1 / 5)
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert repeated_share([1, 2, 3]) is None
    made = fluency([[1] * 8, [1, 2, 3, 4, 5, 6, 7, 8], [9]])
    assert made.repetition == pytest.approx(0.4)
    assert made.repetition_standard_error == pytest.approx(0.4)
    assert made.distinct_1 == pytest.approx(9 / 17)
    assert made.distinct_2 == pytest.approx(8 / 14)
    assert made.length == pytest.approx(17 / 3)
    assert fluency([[1]]).repetition is None and fluency([[1]]).distinct_2 is None


def test_agreement_by_hand():
    assert common_prefix([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([5], [6]) == 0
    assert equal_share([1, 2, 3, 4], [1, 2, 9, 4]) == 0.75
    assert equal_share([1, 2], [1, 2, 3, 4]) == 0.5


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_continuations_equal_a_naive_loop(model_type):
    pruned, dense = tiny_model(model_type, layers=2), tiny_model(model_type, layers=2, seed=1)
    ids = random_ids(200)
    result = generation_quality(pruned, None, ids, CONFIG, dense)
    prompts = [ids[start * 8 : start * 8 + 8] for start in (0, 5, 10, 15, 20)]
    pairs = [(naive(pruned, prompt, 12), naive(dense, prompt, 12)) for prompt in prompts]
    assert result.model == fluency([made for made, _ in pairs])
    assert result.baseline == fluency([wanted for _, wanted in pairs])
    assert result.common_prefix == pytest.approx(sum(common_prefix(*pair) for pair in pairs) / 5)
    assert result.equal_tokens == pytest.approx(sum(equal_share(*pair) for pair in pairs) / 5)


def test_a_model_follows_itself():
    model = tiny_model("llama", layers=1)
    result = generation_quality(model, None, random_ids(200), CONFIG, model)
    assert (result.common_prefix, result.equal_tokens, result.identical) == (12, 1, 1)
    assert result.common_prefix_standard_error == 0
    assert result.model == result.baseline
    alone = generation_quality(model, None, random_ids(200), CONFIG)
    assert alone.baseline is None and alone.common_prefix is None and alone.model == result.model


def test_the_end_token_ends_a_continuation():
    model = tiny_model("llama", layers=1)
    prompt = random_ids(8)
    made = naive(model, prompt, 12)
    model.generation_config.eos_token_id = [made[4], VOCAB - 1]
    result = generation_quality(model, None, prompt, ContinuationConfig(1, 8, 12))
    assert result.model.length == made.index(made[4]) + 1


def test_prompts_spread_over_the_text_and_start_with_bos():
    ids = torch.arange(100)
    prompts = pick_prompts(ids, ContinuationConfig(4, 8), None, "t")
    assert prompts[:, 0].tolist() == [0, 24, 48, 72]
    assert pick_prompts(ids, ContinuationConfig(4, 8), BOS, "t")[:, :2].tolist() == [[1, 1], [1, 25], [1, 49], [1, 73]]
    assert ids[0] == 0


def test_training_mode_is_put_back():
    model = tiny_model("llama", layers=1, attention_dropout=0.5).train()
    first, second = (generation_quality(model, tiny_tokenizer(), random_ids(200), CONFIG) for _ in range(2))
    assert model.training and first == second


def test_what_does_not_fit_is_refused():
    model = tiny_model("llama", layers=1)
    with pytest.raises(PrunekitError, match="text t holds 39 tokens, and 5 prompts of 8 need 40"):
        generation_quality(model, None, random_ids(39), CONFIG, text="t")
    with pytest.raises(PrunekitError, match="more than the 256 positions small was made for"):
        generation_quality(model, None, random_ids(900), ContinuationConfig(2, 200, 60), name="small")
    with pytest.raises(PrunekitError, match="New tokens must be a whole number of at least 4, got 3"):
        ContinuationConfig(new_tokens=3)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = math.nan
    with pytest.raises(PrunekitError, match=r"^halved gave logits that are not numbers on t;"):
        generation_quality(model, None, random_ids(90), CONFIG, name="halved", text="t")


def test_command(command: Command, tmp_path: Path):
    pruned, dense = (save_tiny(tmp_path / str(seed), layers=2, seed=seed) for seed in (0, 1))
    text = write_text(tmp_path / "text.txt", 2000)
    arguments = ["eval", pruned, "--baseline", dense, "--text", text, "--length", 32, "--device", "cpu", "--generate"]
    arguments += ["--prompts", 4, "--prompt-tokens", 16, "--new-tokens", 8]
    done = command(*arguments, "--json", "-o", tmp_path / "report.json")
    assert done.code == 0, done.err
    (quality,) = done.json["generation"]
    assert quality["text"] == "text.txt" and quality["prompts"] == 4
    assert 0 <= quality["common_prefix"] <= 8 and 0 <= quality["equal_tokens"] <= 1
    assert json.loads((tmp_path / "report.json").read_text()) == done.json
    assert done.json["results"][0]["kl"] > 0
    shown = command(*arguments)
    assert "4 prompts of 16 tokens" in " ".join(shown.out.split()) and "follows" in shown.out
