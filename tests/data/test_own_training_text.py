"""Training text that the dense model writes: kept chunk by chunk, another than calibration's, from any writer."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from prunekit.data import self_generated as self_text
from prunekit.data.calibration import CalibrationConfig
from prunekit.data.mixture import calibration_text
from prunekit.data.packed.filling import _begins
from prunekit.data.self_generated import CHUNK, Writer
from prunekit.data.token_file import expected, pack_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import resolve
from prunekit.plan.training import TextConfig
from tests.support.tiny import VOCAB, tiny_model
from tests.support.tiny_text import BOS, EOS, tiny_tokenizer

LENGTH = 12
WINDOWS = 2 * CHUNK + 10


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return DenseModel(resolve(str(folder)), device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _config(**fields) -> TextConfig:
    return TextConfig(**{"source": "self", "length": LENGTH, "held_out": 4, **fields})


TOKENS = (WINDOWS - 4) * LENGTH


class Fake:
    """A writer that continues with what the seed gives, and stops the run at its call number ``stops``."""

    def __init__(self, stops: int | None = None):
        self.stops = stops
        self.seeds: list[int] = []
        self.starts: list[torch.Tensor] = []

    def __call__(self, starts: torch.Tensor, length: int, seed: int) -> torch.Tensor:
        if len(self.seeds) == self.stops:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        self.starts.append(starts)
        more = torch.randint(0, 9, (len(starts), length - 1), generator=torch.Generator().manual_seed(seed))
        return torch.cat([starts, more], 1)


def test_the_model_writes_what_calibration_does_not(tmp_path, dense):
    text = pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense)
    assert len(text.parts[0].ids) == WINDOWS and text.epochs(TOKENS) == (1,)
    assert (text.parts[0].ids[::2, 0] == EOS).all()
    rows = set(map(tuple, text.parts[0].ids.tolist()))
    assert len(rows) == WINDOWS
    for seed in range(3):
        asked = CalibrationConfig(source="self", sequences=WINDOWS, length=LENGTH, seed=seed)
        assert not rows & set(map(tuple, calibration_text(asked, tiny_tokenizer(), dense).blocks.tolist()))
    other = pack_text(tmp_path / "other", _config(seed=1), TOKENS, tiny_tokenizer(), dense)
    assert not rows & set(map(tuple, other.parts[0].ids.tolist()))


def test_it_is_sampled_once(tmp_path, dense, monkeypatch):
    assert expected(_config(), TOKENS, dense) == ((2 * CHUNK + 16) * LENGTH, 3)
    first = pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense)
    assert expected(_config(), TOKENS, dense) == (0, 0)
    # Whole chunks serve a longer training too.
    assert expected(_config(), 2 * TOKENS, dense).chunks == 3
    assert expected(_config(source="builtin"), TOKENS, dense) == (0, 0)
    monkeypatch.setattr(self_text, "_sampler", lambda *args: pytest.fail("sampled twice"))
    assert pack_text(tmp_path / "u", _config(), TOKENS, tiny_tokenizer(), dense).fingerprint == first.fingerprint


def test_a_run_that_was_stopped_goes_on(tmp_path, dense):
    whole = Fake()
    text = pack_text(tmp_path / "whole", _config(), TOKENS, tiny_tokenizer(), dense, writer=Writer("whole", whole))
    stopped = Fake(stops=2)
    with pytest.raises(KeyboardInterrupt):
        pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense, writer=Writer("fake", stopped))
    assert not (tmp_path / "t").exists()
    more = Writer("fake", Fake())
    assert expected(_config(), TOKENS, dense, writer=more) == (16 * LENGTH, 1)
    again = pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense, writer=more)
    assert stopped.seeds + more.write.seeds == whole.seeds
    assert again.parts[0].sha256 == text.parts[0].sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "t", "whole"]


def test_a_writer_is_given_starts_and_seeds_and_loads_no_model(tmp_path, dense, monkeypatch):
    monkeypatch.setattr(dense, "share", lambda: pytest.fail("loaded"))
    fake = Fake()
    text = pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense, writer=Writer("fake", fake))
    assert [len(starts) for starts in fake.starts] == [CHUNK, CHUNK, 16]
    assert len(set(fake.seeds)) == 3 and all(0 <= seed < 1 << 63 for seed in fake.seeds)
    for starts in fake.starts:
        assert (starts[::2] == EOS).all() and starts.min() >= 0 and starts.max() < VOCAB
    assert text.describe()["parts"][0]["writer"] == "fake"
    # Its text is kept apart from the model's own, and from another writer's.
    assert expected(_config(), TOKENS, dense).chunks == 3
    assert expected(_config(), TOKENS, dense, writer=Writer("other", fake)).chunks == 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda starts, length, seed: starts,
        lambda starts, length, seed: starts.repeat(1, length).int(),
        lambda starts, length, seed: starts.repeat(1, length) + 1,
    ],
)
def test_a_writer_that_writes_something_else_is_refused(tmp_path, dense, wrong):
    with pytest.raises(PrunekitError, match="The writer wrong must continue 64 starts"):
        pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense, writer=Writer("wrong", wrong))
    beyond = Writer("beyond", lambda starts, length, seed: torch.cat([starts, starts.new_full((64, 11), VOCAB)], 1))
    with pytest.raises(PrunekitError, match="the model knows only 128"):
        pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense, writer=beyond)
    assert not (tmp_path / "t").exists()


def test_documents_in_what_it_writes(tmp_path, dense):
    text = pack_text(tmp_path / "t", _config(), TOKENS, tiny_tokenizer(), dense, writer=Writer("fake", Fake()))
    made = text.batch(0, 50)
    assert torch.equal(made.documents[:, 1:], (made.ids == EOS).long().cumsum(1)[:, :-1])
    begun = pack_text(
        tmp_path / "u", _config(), TOKENS, tiny_tokenizer(bos=True), dense, writer=Writer("fake", Fake())
    ).batch(0, 50)
    assert (begun.ids[:, 0] == BOS).all()
    assert torch.equal(begun.documents[:, 1:], (begun.ids[:, 1:] == BOS).long().cumsum(1))


def test_chunks_are_let_go_as_they_are_written(tmp_path, dense):
    given: list[weakref.ref] = []

    def write(starts, length, seed):
        assert sum(each() is not None for each in given) <= 1
        ids = starts.repeat(1, length)
        given.append(weakref.ref(ids))
        return ids

    pack_text(tmp_path / "t", _config(), 20 * CHUNK * LENGTH, tiny_tokenizer(), dense, writer=Writer("weak", write))
    assert len(given) == 21


def test_separators_of_several_tokens():
    ids = torch.tensor([[5, 7, 8, 5, 7, 9], [8, 7, 8, 7, 8, 7]]).numpy()
    assert _begins(ids, [], []).tolist() == [0, 6]
    assert _begins(ids, [7, 8], []).tolist() == [0, 1, 6, 7, 9]
    assert _begins(ids, [], [7, 8]).tolist() == [0, 3, 6, 9, 11]
    assert _begins(ids, [], [7] * 7).tolist() == _begins(ids, [7] * 7, []).tolist() == [0, 6]


def test_a_mix_reads_before_it_writes(tmp_path, dense, cache):
    (tmp_path / "short.txt").write_text("too short")
    fake = Fake()
    with pytest.raises(PrunekitError, match=r"short\.txt holds 10 tokens"):
        pack_text(
            tmp_path / "t",
            _config(source=f"self:0.5,{tmp_path / 'short.txt'}:0.5"),
            TOKENS,
            tiny_tokenizer(),
            dense,
            writer=Writer("fake", fake),
        )
    assert not fake.seeds
