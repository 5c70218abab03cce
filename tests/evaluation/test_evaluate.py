from __future__ import annotations

import json
import math

import pytest
import torch
from tokenizers.decoders import Fuse
from typer.testing import CliRunner

from prunekit.errors import PrunekitError
from prunekit.evaluation.own_tokenizers import Read, compare_apart
from prunekit.evaluation.perplexity import evaluate
from prunekit.evaluation.windows import EvalConfig, read_texts, windows
from prunekit.models import head
from prunekit.models.head import Head
from tests.support.tiny import MODEL_TYPES, VOCAB, tiny_model
from tests.support.tiny_text import BOS, tiny_tokenizer


def random_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair():
    return tiny_model("llama", layers=2), tiny_model("llama", layers=2, seed=1)


@torch.no_grad()
def log_probs64(model, ids):
    return torch.log_softmax(model(ids[None]).logits[0].double(), -1)


def naive_nll(model, ids, length, stride):
    """Every token is scored once, by the first full window that reaches it, with all the context it has there."""
    losses, scored = [], 1
    for start in range(0, len(ids) - length + 1, stride):
        lp = log_probs64(model, ids[start : start + length])
        for position in range(max(scored, start + 1), start + length):
            losses.append(-lp[position - start - 1, ids[position]].item())
        scored = start + length
    return losses


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 16), (16, 5), (16, 15), (16, 1)])
def test_perplexity_equals_a_naive_loop(pair, length, stride):
    ids = random_ids(100)
    config = EvalConfig(length=length, stride=stride, batch_size=3)
    result = evaluate(pair[0], None, {"text": ids}, config).results[0]
    losses = naive_nll(pair[0], ids, length, stride or length)
    assert result.tokens_predicted == len(losses)
    assert result.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_windows_score_each_token_once_and_drop_the_rest():
    assert windows(10, 4, 4) == [(0, 4, 1), (4, 8, 1)]
    assert windows(10, 4, 2) == [(0, 4, 1), (2, 6, 2), (4, 8, 2), (6, 10, 2)]
    assert windows(10, 4, 3) == [(0, 4, 1), (3, 7, 1), (6, 10, 1)]
    assert windows(3, 4, 4) == [(0, 3, 1)]


def test_result_does_not_depend_on_batches_or_chunks(pair, monkeypatch):
    ids = random_ids(200)
    first = evaluate(pair[0], None, {"t": ids}, EvalConfig(length=16, batch_size=1), pair[1]).results[0]
    monkeypatch.setattr(head, "_ELEMENTS", 7 * VOCAB)
    second = evaluate(pair[0], None, {"t": ids}, EvalConfig(length=16, batch_size=5), pair[1]).results[0]
    assert second.nll == pytest.approx(first.nll, rel=1e-6)
    assert second.kl == pytest.approx(first.kl, rel=1e-5)
    assert second.agreement == first.agreement


def test_a_model_against_itself(pair):
    result = evaluate(pair[0], None, {"t": random_ids(64)}, EvalConfig(length=16), pair[0]).results[0]
    assert result.kl == 0
    assert result.agreement == 1
    assert result.nll_increase == 0
    assert result.baseline_perplexity == result.perplexity


def test_distance_equals_a_naive_computation(pair):
    ids = random_ids(64)
    pruned, dense = pair
    result = evaluate(pruned, None, {"t": ids}, EvalConfig(length=16), dense).results[0]
    kl, agree, dense_nll = [], [], []
    for block in ids.reshape(4, 16):
        p, q = log_probs64(dense, block)[:-1], log_probs64(pruned, block)[:-1]
        kl.append((p.exp() * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        dense_nll.append(-p.gather(1, block[1:, None])[:, 0])
    assert result.kl == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert result.kl > 0.01
    assert result.agreement == pytest.approx(torch.cat(agree).double().mean().item())
    assert result.baseline_nll == pytest.approx(torch.cat(dense_nll).mean().item(), rel=1e-5)
    assert result.nll_increase == pytest.approx(result.nll - result.baseline_nll, rel=1e-9)


def test_standard_error_is_that_of_window_means(pair):
    ids = random_ids(160)
    result = evaluate(pair[0], None, {"t": ids}, EvalConfig(length=16)).results[0]
    means = torch.tensor(naive_nll(pair[0], ids, 16, 16)).reshape(10, 15).mean(1)
    assert result.nll_standard_error == pytest.approx((means.std() / math.sqrt(10)).item(), rel=1e-3)
    alone = evaluate(pair[0], None, {"t": ids[:16]}, EvalConfig(length=16)).results[0]
    assert alone.nll_standard_error is None


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_are_the_models_own(model_type):
    fields = {"final_logit_softcapping": 2.0} if model_type.startswith("gemma") else {}
    model = tiny_model(model_type, layers=2, **fields)
    ids = random_ids(24)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(Head(model)(hidden), model(ids).logits[0])


def test_bos_replaces_the_first_token_of_each_window(pair, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    result = evaluate(pair[0], tiny_tokenizer(bos=True), [str(path)], EvalConfig(length=16)).results[0]
    ids = torch.tensor(tiny_tokenizer(bos=True).encode(path.read_text()))
    blocks = ids[: len(ids) // 16 * 16].reshape(-1, 16)
    blocks[:, 0] = BOS
    losses = [loss for block in blocks for loss in naive_nll(pair[0], block, 16, 16)]
    assert result.window_start == BOS
    assert result.text == "t.txt"
    assert result.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_broken_weights_name_the_model(pair):
    broken = tiny_model("llama", layers=2)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = math.nan
    with pytest.raises(PrunekitError, match=r"^halved gave logits that are not numbers on t;"):
        evaluate(broken, None, {"t": random_ids(40)}, EvalConfig(length=16), name="halved")
    with pytest.raises(PrunekitError, match=r"^dense gave"):
        evaluate(pair[0], None, {"t": random_ids(40)}, EvalConfig(length=16), broken, baseline_name="dense")


def test_what_does_not_fit_is_refused(pair):
    ids = {"t": random_ids(40)}
    with pytest.raises(PrunekitError, match="vocabularies differ: model has 128 entries and baseline 200"):
        evaluate(pair[0], None, ids, EvalConfig(length=16), tiny_model("llama", layers=1, vocab_size=200))
    with pytest.raises(PrunekitError, match="at most 256"):
        evaluate(pair[0], None, ids, EvalConfig(length=512))
    with pytest.raises(PrunekitError, match="holds 1 tokens"):
        evaluate(pair[0], None, {"t": ids["t"][:1]}, EvalConfig(length=16))
    with pytest.raises(PrunekitError, match="no text"):
        evaluate(pair[0], None, [], EvalConfig(length=16))
    with pytest.raises(PrunekitError, match="would skip tokens"):
        EvalConfig(length=16, stride=17)
    with pytest.raises(PrunekitError, match="Length must be"):
        EvalConfig(length=1)


def test_max_tokens_and_builtin(pair):
    config = EvalConfig(length=32, max_tokens=100)
    result = evaluate(pair[0], tiny_tokenizer(), ["builtin"], config).results[0]
    assert (result.tokens_seen, result.tokens_predicted, result.windows) == (96, 93, 3)


def test_a_perplexity_beyond_floats_is_null_in_json():
    model = tiny_model("llama", layers=1)
    with torch.no_grad():
        model.lm_head.weight *= 1e6
    report = evaluate(model, None, {"t": random_ids(40)}, EvalConfig(length=16))
    assert report.results[0].perplexity == math.inf
    assert report.to_dict()["results"][0]["perplexity"] is None
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("model") / f"tiny{seed}"
        tiny_model("llama", layers=2, seed=seed).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        made.append(folder)
    return made


def test_command(folders, tmp_path):
    pytest.importorskip("prunekit.models.source")
    from prunekit.cli.commands.evaluate import evaluate_command  # noqa: F401
    from prunekit.cli.common import app

    out = tmp_path / "report.json"
    arguments = ["eval", str(folders[0]), "--baseline", str(folders[1]), "--length", "32", "--max-tokens", "320"]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "-o", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "how far the predictions moved" in " ".join(done.stdout.split())
    report = json.loads(out.read_text())
    assert report["results"][0]["tokens_predicted"] == 310
    assert report["results"][0]["kl"] > 0
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == report


def test_each_model_reads_with_its_own_tokenizer(pair, tmp_path):
    text = "The quick brown fox jumps over the lazy dog. " * 8
    (tmp_path / "t.txt").write_text(text)
    plain, merged = tiny_tokenizer(), tiny_tokenizer(merges=[("t", "h"), ("th", "e")])
    for each in (plain, merged):
        each.backend_tokenizer.decoder = Fuse()
    config, files = EvalConfig(length=16), [str(tmp_path / "t.txt")]
    read, other = (
        Read(evaluate(model, tokenizer, tokens, config), tokenizer, tokens)
        for model, tokenizer in zip(pair, (plain, merged), strict=True)
        for tokens in [read_texts(files, tokenizer, config)]
    )
    result = compare_apart(read, other).results[0]
    ids = torch.tensor(merged.encode(text))
    assert len(ids) < len(text) and int(ids.max()) > 99
    losses = naive_nll(pair[1], ids[: len(ids) // 16 * 16], 16, 16)
    assert result.baseline_nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.nll == pytest.approx(evaluate(pair[0], None, {"t": read.tokens["t.txt"]}, config).results[0].nll)
    # A token is a byte here, and 1 to 3 of them there.
    assert result.bits_per_byte == pytest.approx(result.nll / math.log(2))
    assert result.baseline_bits_per_byte < result.baseline_nll / math.log(2)
    assert (result.kl, result.agreement, result.nll_increase) == (None, None, None)


def test_command_with_another_tokenizer(command, folders, tmp_path):
    other = tmp_path / "other"
    tiny_model("llama", layers=2, seed=3).save_pretrained(other)
    tiny_tokenizer(merges=[("t", "h"), ("th", "e")]).save_pretrained(other)
    arguments = ["eval", folders[0], "--baseline", other, "--length", "32", "--max-tokens", "320", "--device", "cpu"]
    ended = command(*arguments)
    assert ended.code == 0 and "each model read the text with its own" in " ".join(ended.out.split())
    report = command(*arguments, "--json").json["results"][0]
    alone = command(*["eval", other, *arguments[4:], "--json"]).json["results"][0]
    assert report["baseline_nll"] == alone["nll"] and report["kl"] is None
    assert command(*arguments, "--generate").code == 2


def test_training_mode_is_put_back():
    model = tiny_model("llama", layers=1, attention_dropout=0.5).train()
    first, second = (evaluate(model, None, {"t": random_ids(40)}, EvalConfig(length=16)) for _ in range(2))
    assert model.training
    assert first == second
