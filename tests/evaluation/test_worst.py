"""The worst beginnings of a text: found among all of it, with what both models write there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.evaluation.continuations import ContinuationConfig
from prunekit.evaluation.run import compare
from prunekit.evaluation.windows import EvalConfig
from prunekit.evaluation.worst import Hard, hardest, most_hard
from prunekit.models.source import load_model, resolve
from prunekit.utils.phases.telling import progress
from tests.support.command import save_tiny, write_text
from tests.support.tiny import tiny_model
from tests.support.tiny_text import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("single_threaded")

CONFIG = ContinuationConfig(prompts=2, prompt_length=16, new_tokens=8, worst=3)


def test_by_hand() -> None:
    config = ContinuationConfig(1, 2, 4, worst=2)
    # Blocks begin at 0, 2, 4, ...; behind the one at 2 stand tokens 4 to 7.
    kl = torch.tensor([math.nan, 1, 1, 1, 5, 5, math.nan, 5, 0, 0, 0, 0], dtype=torch.float64)
    assert hardest(kl, config) == (Hard(2, 5.0), Hard(0, (1 + 1 + 5 + 5) / 4))
    assert most_hard(12, config) == 2 and most_hard(12, config, 9) == 5 and most_hard(3, config) == 0
    # Too few tokens behind it were predicted.
    assert hardest(torch.full((12,), math.nan, dtype=torch.float64), config) == ()
    assert hardest(kl[:3], config) == ()
    # What no number holds is the worst of all.
    assert hardest(torch.tensor([0.0, 1, 1, 1, 1, 1, 1, math.inf]), config)[0] == Hard(2, math.inf)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model; one that reads Z otherwise; a text with one place of Zs that no prompt is taken from."""
    root = tmp_path_factory.mktemp("worst")
    save_tiny(root / "dense", layers=2)
    other = tiny_model("llama", layers=2)
    with torch.no_grad():
        other.model.embed_tokens.weight[tiny_tokenizer().convert_tokens_to_ids("Z")] *= -40
    other.save_pretrained(root / "small")
    tiny_tokenizer().save_pretrained(root / "small")
    text = write_text(root / "own.txt", 3000).read_text()
    (root / "own.txt").write_text(f"{text[:1316]}{'Z' * 12}{text[1328:]}")
    return root


def asked(places: Path, **given: Any) -> dict[str, Any]:
    text = str(places / "own.txt")
    return {"texts": [text], "config": EvalConfig(length=32, batch_size=3), "device": "cpu", **given}


@torch.no_grad()
def naive_kl(places: Path, ids: torch.Tensor, length: int) -> list[float]:
    """KL of each token, window by window; NaN of the first of each."""
    models = [load_model(resolve(str(places / name)), device="cpu") for name in ("dense", "small")]
    found: list[float] = []
    for at in range(0, len(ids) - length + 1, length):
        dense, small = (model(ids[None, at : at + length]).logits[0, :-1].double().log_softmax(-1) for model in models)
        found += [math.nan, *(dense.exp() * (dense - small)).sum(-1).tolist()]
    return found


@torch.no_grad()
def greedy(folder: Path, ids: torch.Tensor, count: int) -> list[int]:
    model = load_model(resolve(str(folder)), device="cpu")
    for _ in range(count):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
    return ids[-count:].tolist()


def test_the_worst_of_many_is_found(places: Path) -> None:
    told = []
    with progress(told.append):
        names = {"baseline": str(places / "dense"), "continuations": CONFIG}
        (made,) = compare([str(places / "small")], **asked(places, **names)).models
    ids = torch.tensor(tiny_tokenizer()((places / "own.txt").read_text())["input_ids"])
    kl = naive_kl(places, ids, 32)
    means = {}
    for start in range(0, len(kl) - 16 - 4 + 1, 16):
        behind = [each for each in kl[start + 16 : start + 24] if not math.isnan(each)]
        means[start] = sum(behind) / len(behind)
    expected = sorted(means, key=lambda start: -means[start])[:3]
    assert expected[0] in (1296, 1312) and means[expected[0]] > 3 * sorted(means.values())[-4]
    assert [each.start for each in made.worst] == expected
    assert [each.kl for each in made.worst] == pytest.approx([means[start] for start in expected], rel=1e-3)
    # No prompt of those that are spread over the text stands there.
    assert made.worst[0].prompt not in {each.prompt for each in made.examples}
    for each in made.worst:
        prompt = ids[each.start : each.start + 16]
        assert each.prompt == tiny_tokenizer().decode(prompt) and each.text == "own.txt"
        for name, said in (("small", each.model), ("dense", each.baseline)):
            assert said == tiny_tokenizer().decode(greedy(places / name, prompt, 8), skip_special_tokens=True)
    assert made.to_dict()["worst"][0]["kl"] == made.worst[0].kl
    # What is told of the run has them in it: two prompts and three more, and three of the dense model.
    totals = {event.title: event.total for event in told if "continues" in event.title}
    assert totals == {
        "dense continues own.txt": 2,
        "small continues own.txt": 5,
        "dense continues the worst of own.txt": 3,
    }


def test_without_a_baseline_there_is_none(places: Path) -> None:
    (alone,) = compare([str(places / "small")], **asked(places, continuations=CONFIG)).models
    assert alone.worst == () and "worst" not in alone.to_dict()


def test_several_models_share_what_the_baseline_writes(places: Path) -> None:
    names = [str(places / "small"), str(places / "dense"), str(places / "small")]
    told = []
    with progress(told.append):
        made = compare(names, **asked(places, baseline=str(places / "dense"), continuations=CONFIG)).models
    assert made[0].worst == made[2].worst and len(made[1].worst) == 3
    assert all(each.kl == 0 and each.model == each.baseline for each in made[1].worst)
    (total,) = {event.total for event in told if "the worst" in event.title}
    assert total == len({each.start for model in made for each in model.worst}) <= 6
