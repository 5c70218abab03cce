"""Scores of logged requests: what the deployed model says alone, and beside the dense one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models import head as heads
from prunekit.models.source import resolve
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.scoring import scorer as scorers
from prunekit.monitoring.scoring.contexts import Context, Reader, ScoringConfig
from prunekit.monitoring.scoring.dense import KeptStates, Likeliest, coarse_kl
from prunekit.monitoring.scoring.deployed import score
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.scores import RequestScore
from tests.support.tiny import VOCAB, tiny_model
from tests.support.tiny_text import BOS, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("single_threaded")

CONFIG = ScoringConfig(prompts=8, least=4, prompt_tokens=24, answer_tokens=12, reference=16)


def contexts(count: int = 4, seed: int = 0) -> list[Context]:
    made = []
    rng = np.random.default_rng(seed)
    for number in range(count):
        ids = tuple(map(int, rng.integers(3, VOCAB, 12 + number)))
        made.append(Context(f"r{number}", ids, 7 + number % 3, True))
    return made


def requests(count: int = 10, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return "".join(chr(97 + place) for place in rng.integers(0, 26, most))

    return [Request(f"id-{seed}-{number}", prompt=text(14 + number), answer=text(6)) for number in range(count)]


def scored(model: Any, dense: Any, given: list[Context]) -> list[RequestScore]:
    said = KeptStates("dense")
    said.read(dense, given)
    return list(score(model, given, said))


def log_probs(model: Any, context: Context) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([context.ids])).logits[0, :-1].float().log_softmax(-1).double()


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tiny_model("llama", layers=3), tiny_model("llama", layers=3, seed=1)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_shadow_scores_equal_the_direct_computation(family: str) -> None:
    model, dense = (tiny_model(family, layers=2, seed=seed) for seed in (0, 1))
    given = contexts()
    for context, made in zip(given, scored(model, dense, given), strict=True):
        q, p = log_probs(model, context), log_probs(dense, context)
        targets = torch.tensor(context.ids[1:])[:, None]
        own, other = -q.gather(1, targets)[:, 0], -p.gather(1, targets)[:, 0]
        kl = (p.exp() * (p - q)).sum(-1)
        split = context.prompt - 1
        assert made.prompt_nll == pytest.approx(float(own[:split].mean()), rel=1e-4)
        assert made.answer_nll == pytest.approx(float(own[split:].mean()), rel=1e-4)
        assert made.shadow is not None
        assert made.shadow.kl == pytest.approx(float(kl.mean()), rel=1e-4)
        assert made.shadow.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())
        assert made.shadow.answer_increase == pytest.approx(float((own - other)[split:].mean()), rel=1e-4)
        assert made.shadow.prompt_increase == pytest.approx(float((own - other)[:split].mean()), rel=1e-4, abs=1e-6)
        assert not made.shadow.bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_model_twice_is_exactly_alike(dtype: torch.dtype) -> None:
    model, again = (tiny_model("llama", layers=2).to(dtype) for _ in range(2))
    for made in scored(model, again, contexts()):
        assert made.shadow is not None
        assert (made.shadow.kl, made.shadow.agreement) == (0, 1)
        assert (made.shadow.prompt_increase, made.shadow.answer_increase) == (0, 0)


def test_the_feature_is_the_mean_of_the_middle_layer_over_the_prompt_but_its_first_token(pair: Any) -> None:
    given = contexts(1)
    with torch.no_grad():
        states = pair[0](torch.tensor([given[0].ids]), output_hidden_states=True).hidden_states
    expected = states[2][0, 1 : given[0].prompt].mean(0)
    made = next(iter(score(pair[0], given, {})))
    np.testing.assert_allclose(made.feature, expected.numpy(), rtol=2e-3, atol=2e-3)


def test_only_a_few_positions_are_logits_at_a_time(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = contexts()
    whole = scored(*pair, given)
    rows: list[int] = []
    forward = heads.Head.__call__
    monkeypatch.setattr(heads.Head, "__call__", lambda self, hidden: rows.append(len(hidden)) or forward(self, hidden))
    monkeypatch.setattr(heads, "_ELEMENTS", 3 * VOCAB)
    parts = scored(*pair, given)
    assert max(rows) == 3
    for one, other in zip(whole, parts, strict=True):
        assert one.shadow is not None and other.shadow is not None
        assert one.shadow.kl == pytest.approx(other.shadow.kl, rel=1e-5)
        assert one.answer_nll == pytest.approx(other.answer_nll, rel=1e-5)


def test_what_is_said_of_a_request_does_not_depend_on_the_others(pair: Any) -> None:
    given = contexts()
    alone = [scored(*pair, [each])[0] for each in given]
    assert [_plain(each) for each in scored(*pair, given)] == [_plain(each) for each in alone]


def test_a_corrupted_layer_shows_at_once(pair: Any) -> None:
    dense = pair[1]
    sound, damaged = (tiny_model("llama", layers=3, seed=1) for _ in range(2))
    with torch.no_grad():
        sound.model.layers[1].mlp.down_proj.weight *= 1.001
        weight = damaged.model.layers[1].mlp.down_proj.weight
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    given = contexts(12)
    before, after = ([each.shadow.kl for each in scored(model, dense, given)] for model in (sound, damaged))
    assert min(after) > 20 * max(before) > 0


def test_a_server_s_likeliest_tokens_give_a_lower_bound(pair: Any) -> None:
    given = contexts()
    exact = scored(*pair, given)
    found = []
    for k in (1, 4, VOCAB):
        said = {}
        for context in given:
            p = log_probs(pair[1], context)
            targets = torch.tensor(context.ids[1:])
            top = p.topk(k, -1)
            said[context.id] = Likeliest(top.indices, top.values, p.gather(1, targets[:, None])[:, 0], p.argmax(-1))
        made = list(score(pair[0], given, said))
        assert all(each.shadow is not None and each.shadow.bound for each in made)
        found.append([each.shadow.kl for each in made])
        for one, other in zip(made, exact, strict=True):
            assert one.shadow.agreement == other.shadow.agreement
            assert one.shadow.answer_increase == pytest.approx(other.shadow.answer_increase, rel=1e-4)
    full = [each.shadow.kl for each in exact]
    assert all(0 < a < b < c * 1.0001 for a, b, c in zip(*found[:2], full, strict=True))
    assert found[2] == pytest.approx(full, rel=1e-4)


def test_a_server_of_a_larger_vocabulary_is_refused(pair: Any) -> None:
    given = contexts(1)
    rows = len(given[0].ids) - 1
    ids, zeros = torch.full((rows, 1), VOCAB), torch.zeros(rows).double()
    said = {given[0].id: Likeliest(ids, zeros[:, None], zeros, ids[:, 0])}
    with pytest.raises(PrunekitError, match=f"tells of the token {VOCAB}"):
        list(score(pair[0], given, said))


def test_coarse_kl_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25]]).double().log()
    q = torch.tensor([[0.25, 0.25]]).double().log()
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.25 / 0.5)
    assert float(coarse_kl(p, q)) == pytest.approx(expected)
    assert float(coarse_kl(p, p)) == pytest.approx(0, abs=1e-12)
    # Padding, and log-probabilities whose sum is a little above 1.
    padded = torch.tensor([[1.0001, 0.0]]).double().log()
    assert float(coarse_kl(padded, padded)) == pytest.approx(0, abs=1e-3)


def _plain(made: RequestScore) -> Any:
    return replace(made, feature=made.feature.tolist())


# What is read of a request


def test_the_end_of_the_prompt_and_the_beginning_of_the_answer_are_read() -> None:
    tokenizer = tiny_tokenizer()
    reader = Reader(tokenizer, VOCAB, replace(CONFIG, prompt_tokens=4, answer_tokens=3))
    made, why = reader.read([Request("a", prompt="abcdefgh", answer="uvwxyz", logprob_mean=-1.5)])
    assert not why
    assert tokenizer.decode(list(made[0].ids)).replace(" ", "") == "efghuvw"
    assert (made[0].prompt, made[0].whole, made[0].said) == (4, False, -1.5)


def test_a_text_begins_with_bos_once() -> None:
    reader = Reader(tiny_tokenizer(bos=True), VOCAB, replace(CONFIG, prompt_tokens=4))
    made, _ = reader.read(
        [
            Request("text", prompt="ab"),
            Request("ids", prompt_ids=(BOS, 7, 8)),
            Request("long", prompt_ids=(BOS, 7, 8, 9, 10, 11)),
        ]
    )
    assert [each.ids[0] for each in made] == [BOS] * 3
    assert [len(each.ids) for each in made] == [3, 3, 4]
    assert made[2].ids[1:] == (9, 10, 11)
    assert [each.whole for each in made] == [True, True, False]


def test_requests_that_can_t_be_read_say_why() -> None:
    reader = Reader(tiny_tokenizer(), VOCAB, CONFIG)
    made, why = reader.read(
        [
            Request("none", n_in=5),
            Request("one", prompt="a"),
            Request("large", prompt_ids=(5, VOCAB)),
            Request("below", prompt_ids=(5, -1)),
            Request("fine", prompt="ab"),
        ]
    )
    assert [each.id for each in made] == ["fine"]
    assert "no prompt of at least two tokens" in why["none"] == why["one"]
    assert "not of this model's vocabulary" in why["large"] == why["below"]


def test_a_chat_goes_through_the_model_s_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"
    )
    chat = Request("c", prompt="hi", messages=(("user", "hi"),), answer="yo")
    made, _ = Reader(tokenizer, VOCAB, CONFIG).read([chat, replace(chat, id="ids", prompt_ids=(9, 10))])
    assert tokenizer.decode(list(made[0].ids)).replace(" ", "") == "<user>hi<A>yo"
    assert made[1].ids[:2] == (9, 10)


@pytest.mark.parametrize(
    "wrong", [{"prompts": 1}, {"share": 0.0}, {"share": 1.5}, {"reference": 257}, {"answer_tokens": 0}, {"least": True}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PrunekitError):
        ScoringConfig(**wrong)


def test_one_percent_but_at_least_twenty_are_shadowed() -> None:
    assert [ScoringConfig().shadowed(window) for window in (50, 200, 2000, 2001, 10_000)] == [20, 20, 20, 21, 100]


# Scores of whole requests, each computed once


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scorer")
    for name, seed in (("deployed", 0), ("dense", 1)):
        tiny_model("llama", layers=2, seed=seed).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


def make_scorer(folders: Path, **options: Any) -> Scorer:
    sources = [resolve(str(folders / name)) for name in ("deployed", "dense")]
    return Scorer(*sources, CONFIG, device="cpu", **options)


def test_scores_are_computed_once_and_do_not_change(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(folders)
    given = requests()
    first, _ = scorer.scores(given, given[:4])
    assert [each.shadow is not None for each in first] == [True] * 4 + [False] * 6
    monkeypatch.setattr(scorers, "score", None)
    again, _ = scorer.scores(given[::-1], given[:2])
    assert [_plain(each) for each in again[::-1]] == [_plain(each) for each in first]


@pytest.mark.parametrize("room", [0, 1 << 60])
def test_models_that_do_not_fit_together_are_loaded_in_turn(
    folders: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(scorers, "free_bytes", lambda device: room)
    given = requests()
    scorer = make_scorer(folders)
    made, _ = scorer.scores(given, given)
    expected, _ = make_scorer(folders).scores(given, given)
    assert [_plain(each) for each in made] == [_plain(each) for each in expected]
    assert len(scorer._loaded) == (2 if room else 0)


def test_two_requests_of_one_id_are_two(folders: Path) -> None:
    twin, other = Request("same", prompt="abcdef", answer="xyz"), Request("same", prompt="ghijkl", answer="xyz")
    made, _ = make_scorer(folders).scores([twin, other, twin])
    assert made[0].prompt_nll == made[2].prompt_nll != made[1].prompt_nll


def test_the_server_s_own_log_probability_is_compared_where_all_is_read(folders: Path) -> None:
    scorer = make_scorer(folders)
    plain = requests(1)[0]
    nll = scorer.scores([plain])[0][0].answer_nll
    assert nll is not None
    told = replace(plain, logprob_mean=-nll - 0.25)
    assert scorer.scores([told])[0][0].logprob_gap == pytest.approx(0.25)
    assert scorer.scores([replace(told, answer=(told.answer or "") * 9)])[0][0].logprob_gap is None


def test_models_of_other_tokens_are_refused(folders: Path, tmp_path: Path) -> None:
    tiny_model("llama", layers=2).save_pretrained(tmp_path / "other")
    tiny_tokenizer(merges=[("t", "h"), ("th", "e")]).save_pretrained(tmp_path / "other")
    with pytest.raises(PrunekitError, match=r"tokenizers of .* differ"):
        Scorer(resolve(str(folders / "deployed")), resolve(str(tmp_path / "other")), CONFIG)
    with pytest.raises(PrunekitError, match="more than the 256 positions"):
        Scorer(resolve(str(folders / "deployed")), None, ScoringConfig())
