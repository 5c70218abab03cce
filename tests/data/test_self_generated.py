from __future__ import annotations

import pytest
import torch

from prunekit.data import self_generated as self_text
from prunekit.data.calibration import CalibrationConfig
from prunekit.data.mixture import calibration_text, parse_mix
from prunekit.data.self_generated import self_written
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import resolve
from prunekit.utils.numerics.categorical import sampled
from tests.support.tiny import MODEL_TYPES, tiny_model
from tests.support.tiny_text import tiny_tokenizer as make_tokenizer


@pytest.fixture(scope="module")
def tiny_tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return resolve(str(folder))


@pytest.mark.parametrize("spread", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_come_in_their_proportions(spread, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(1, 50, generator=generator)
    logits[0, 7] = -1e4
    drawn = sampled(logits.expand(20_000, -1), generator, dtype)
    share = torch.bincount(drawn, minlength=50) / len(drawn)
    assert (share - logits[0].softmax(-1)).abs().max() < 0.015 and share[7] == 0


def _config(**given):
    return CalibrationConfig(**{"source": "self", "sequences": 5, "length": 24, **given})


def test_text_is_written_once_and_by_the_seed(tiny_source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = self_written(DenseModel(tiny_source), 3, _config())
    assert made.shape == (5, 24) and made.dtype == torch.int64
    assert (made[::2, 0] == 3).all() and not (made[1::2, 0] == 3).all()
    assert not torch.equal(made, self_written(DenseModel(tiny_source), 3, _config(seed=1)))
    # From here on only the cache can answer.
    monkeypatch.setattr(self_text, "_sampler", lambda *args: pytest.fail("sampled twice"))
    assert torch.equal(made, self_written(DenseModel(tiny_source), 3, _config()))
    assert torch.equal(made[:2], self_written(DenseModel(tiny_source), 3, _config(sequences=2)))


def test_a_damaged_cache_is_written_anew(tiny_source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = self_written(DenseModel(tiny_source), 3, _config())
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(made, self_written(DenseModel(tiny_source), 3, _config()))


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_what_is_sampled_is_what_the_model_would_say(family, tiny_tokenizer, monkeypatch, tmp_path):
    """One token after the other, with a cache, sliding windows included: each is drawn from what a whole forward pass
    says there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from prunekit.models.source import load_model

    # bfloat16 rounds differently one token at a time and all at once.
    monkeypatch.setattr(self_text, "has_fast_products", lambda device: False)
    seen = []

    def see(logits, *args):
        seen.append(logits)
        return sampled(logits, *args)

    monkeypatch.setattr("prunekit.utils.numerics.categorical.sampled", see)
    tiny_model(family).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    source = resolve(str(tmp_path / "model"))
    made = self_written(DenseModel(source), 3, _config(sequences=self_text.CHUNK))
    with torch.no_grad():
        logits = load_model(source, device="cpu")(input_ids=made).logits
    assert torch.allclose(torch.stack(seen, 1), logits[:, :-1], atol=1e-4)


def test_broken_weights_write_nothing(tiny_source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tiny_model("llama")
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    monkeypatch.setattr("prunekit.models.source.load_model", lambda *args, **kwargs: broken)
    with pytest.raises(PrunekitError, match="not finite"):
        self_written(DenseModel(tiny_source), 3, _config())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a.txt", (("a.txt", 1.0),)),
        ("a.txt,self", (("a.txt", 0.5), ("self", 0.5))),
        ("a.txt:0.25, self:0.75", (("a.txt", 0.25), ("self", 0.75))),
        ("HuggingFaceFW/fineweb:sample-10BT", (("HuggingFaceFW/fineweb:sample-10BT", 1.0),)),
        ("some/data:config:.5,self:.5", (("some/data:config", 0.5), ("self", 0.5))),
    ],
)
def test_mixes_are_read(source, parts):
    assert parse_mix(source) == parts


@pytest.mark.parametrize("source", ["a:0.5,b", "a:0.5,b:0.6", "a,,b", "a,a", "a:0,b:1", "a:0.5"])
def test_mixes_that_make_no_sense_are_refused(source):
    with pytest.raises(PrunekitError, match="--calib"):
        parse_mix(source)


def test_a_file_may_have_a_comma_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.txt").write_text("text")
    assert parse_mix("a,b.txt") == (("a,b.txt", 1.0),)


def test_a_mix_holds_its_shares(tiny_source, tiny_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = _config(source="builtin:0.7,self:0.3", sequences=10)
    made = calibration_text(config, tiny_tokenizer, DenseModel(tiny_source))
    assert made.input_ids.shape == (10, 24)
    described = made.describe()
    assert [part["sequences"] for part in described["mix"]] == [7, 3]
    assert described["sequences"] == 10 and described["seed"] == 0
    again = calibration_text(config, tiny_tokenizer, DenseModel(tiny_source))
    assert torch.equal(made.input_ids, again.input_ids)
    itself = calibration_text(_config(sequences=3), tiny_tokenizer, DenseModel(tiny_source))
    assert itself.written.all() and made.written.sum() == 3
    assert {tuple(row) for row in made.input_ids[made.written].tolist()} == set(map(tuple, itself.input_ids.tolist()))
    alone = calibration_text(_config(source="builtin", sequences=7), tiny_tokenizer, DenseModel(tiny_source))
    rows = {tuple(row) for row in made.input_ids.tolist()}
    assert {tuple(row) for row in alone.input_ids.tolist()} < rows
    assert not torch.equal(made.step(1).input_ids, made.input_ids)
    with pytest.raises(PrunekitError, match="at least 2"):
        calibration_text(_config(source="builtin,self", sequences=1), tiny_tokenizer, DenseModel(tiny_source))
