"""Training text on disk: what is in its windows, their order, what is held out, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from prunekit.data.calibration import CalibrationConfig, load_calibration
from prunekit.data.token_file import MANIFEST, open_text, pack_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import resolve
from prunekit.plan.training import TextConfig
from tests.support.tiny import tiny_config, tiny_model
from tests.support.tiny_text import BOS, EOS, tiny_tokenizer

LENGTH = 16


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return DenseModel(resolve(str(folder)), device="cpu")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return _book(tmp_path / "book.txt")


def _book(path: Path, documents: int = 200, letters: str = "abcdefgh ", seed: int = 0) -> Path:
    rng = random.Random(seed)
    texts = ("".join(rng.choices(letters, k=rng.randint(3, 60))).strip() or "a" for _ in range(documents))
    path.write_text("\n\n".join(texts))
    return path


def pack(folder, source, dense, *, tokens=10**6, tokenizer=None, **fields):
    config = TextConfig(**{"source": str(source), "length": LENGTH, "held_out": 3, **fields})
    return pack_text(folder, config, tokens, tokenizer or tiny_tokenizer(), dense)


def _all(text, part: int = 0) -> list[list[int]]:
    return text.parts[part].ids.astype("int64").tolist()


def test_windows_hold_the_documents_one_after_another(tmp_path, dense):
    (tmp_path / "a.txt").write_text("abc\n\ndefg\n\n" + "hi" * 20)
    text = pack(tmp_path / "t", tmp_path / "a.txt", dense)
    encode = tiny_tokenizer().encode
    stream = [*encode("abc"), EOS, *encode("defg"), EOS, *encode("hi" * 20), EOS]
    assert text.parts[0].ids.flatten().tolist() == stream[: len(stream) // LENGTH * LENGTH]
    windows = dict(zip(map(tuple, _windows(text, 2)[0]), _windows(text, 2)[1], strict=True))
    windows |= {tuple(text.held_out.ids[0].tolist()): text.held_out.documents[0].tolist()}
    assert windows[tuple(stream[:LENGTH])] == [0] * 4 + [1] * 5 + [2] * 7
    assert windows[tuple(stream[LENGTH : 2 * LENGTH])] == [0] * LENGTH


def _windows(text, count: int, first: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    made = text.batch(first, count)
    return made.ids.tolist(), made.documents.tolist()


def test_they_are_the_blocks_of_calibration(tmp_path, dense, book):
    calibration = CalibrationConfig(source=str(book), sequences=4, length=LENGTH)
    for number, tokenizer in enumerate((tiny_tokenizer(), tiny_tokenizer(bos=True))):
        text = pack(tmp_path / f"t{number}", book, dense, tokenizer=tokenizer)
        assert _all(text) == load_calibration(calibration, tokenizer).blocks.tolist()


def test_a_tokenizer_that_adds_bos_starts_documents_and_windows_with_it(tmp_path, dense, book):
    text = pack(tmp_path / "t", book, dense, tokenizer=tiny_tokenizer(bos=True))
    made = text.batch(0, 40)
    assert (made.ids[:, 0] == BOS).all() and (text.held_out.ids[:, 0] == BOS).all()
    begins = made.documents[:, 1:] != made.documents[:, :-1]
    assert torch.equal(begins, made.ids[:, 1:] == BOS) and begins.any()


def test_documents_are_numbered_by_their_ends(tmp_path, dense, book):
    made = pack(tmp_path / "t", book, dense).batch(0, 60)
    assert made.ids.dtype == made.documents.dtype == torch.int64
    assert made.ids.shape == made.documents.shape == (60, LENGTH)
    ends = (made.ids == EOS).long().cumsum(1)
    assert torch.equal(made.documents[:, 1:], ends[:, :-1])
    assert (made.documents[:, 0] == 0).all()


def test_a_document_that_is_read_in_pieces_is_one(tmp_path, dense, monkeypatch):
    from prunekit.data import sources, tokenised

    (tmp_path / "a.txt").write_text("ab cd " * 40 + "\n\n" + "z" * 100 + "\n\nlast")
    whole = pack(tmp_path / "whole", tmp_path / "a.txt", dense)
    monkeypatch.setattr(sources, "LONGEST_PIECE", 32)
    monkeypatch.setattr(tokenised, "_CHARACTERS_AT_ONCE", 50)
    split = pack(tmp_path / "split", tmp_path / "a.txt", dense)
    assert split.fingerprint == whole.fingerprint


def test_the_order_is_a_function_of_seed_and_number(tmp_path, dense, book):
    text = pack(tmp_path / "t", book, dense)
    ids, documents = _windows(text, 200)
    again = open_text(tmp_path / "t")
    for first, count in ((0, 1), (7, 30), (137, 63), (199, 1)):
        assert _windows(again, count, first) == (ids[first : first + count], documents[first : first + count])
    for processes in (2, 3):
        shared = [_windows(text, 1, step * processes + rank)[0][0] for step in range(5) for rank in range(processes)]
        assert shared == ids[: 5 * processes]
    other = pack(tmp_path / "other", book, dense, seed=1)
    assert _all(other) == _all(text) and _windows(other, 200)[0] != ids
    assert other.fingerprint != text.fingerprint


def test_the_first_windows_never_change(tmp_path, dense):
    """Whoever goes on with a training must find the order that it began with."""
    (tmp_path / "a.txt").write_text("".join(chr(97 + number) * LENGTH for number in range(20)))
    text = pack(tmp_path / "t", tmp_path / "a.txt", dense, held_out=4)
    letters = "".join(tiny_tokenizer().decode(row[0]) for row in text.batch(0, 34).ids)
    assert (letters, "".join(tiny_tokenizer().decode(row[0]) for row in text.held_out.ids)) == (
        "jlifcqgorebdtpnmjiteqgomcdnbfrplqo",
        "ahks",
    )


def test_all_windows_come_before_one_comes_again(tmp_path, dense, book):
    text = pack(tmp_path / "t", book, dense)
    count = text.parts[0].training
    epochs = [sorted(_windows(text, count, epoch * count)[0]) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    orders = [_windows(text, count, epoch * count)[0] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sorted(epochs[0] + text.held_out.ids.tolist()) == sorted(_all(text))


def test_what_is_held_out_is_never_given(tmp_path, dense):
    a, b = _book(tmp_path / "a.txt"), _book(tmp_path / "b.txt", 60, "stuvwxyz ", 1)
    text = pack(tmp_path / "t", f"{a}:0.8,{b}:0.2", dense, held_out=10)
    assert [part.held_out for part in text.parts] == [8, 2]
    held = set(map(tuple, text.held_out.ids.tolist()))
    assert len(held) == len(text.held_out.ids) == 10 and text.held_out.documents.shape == (10, LENGTH)
    assert not held & set(map(tuple, _windows(text, 5 * sum(len(part.ids) for part in text.parts))[0]))
    other = pack(tmp_path / "other", f"{a}:0.8,{b}:0.2", dense, held_out=10, seed=1)
    assert set(map(tuple, other.held_out.ids.tolist())) != held
    assert torch.equal(open_text(tmp_path / "t").held_out.ids, text.held_out.ids)


def test_every_text_gives_its_share(tmp_path, dense):
    sources = [_book(tmp_path / f"{name}.txt", 400, name * 3) for name in "xyz"]
    mix = ",".join(f"{path}:{share}" for path, share in zip(sources, (0.6, 0.25, 0.15), strict=True))
    text = pack(tmp_path / "t", mix, dense, tokens=100 * LENGTH, held_out=1 + 3)
    # Read no further than is needed.
    assert [part.training for part in text.parts] == [60, 25, 15]
    assert text.epochs(100 * LENGTH) == (1, 1, 1) and text.epochs(1000 * LENGTH) == (10, 10, 10)
    letters = [tiny_tokenizer().decode(row).strip("</s>") for row in text.batch(0, 237).ids]
    for j in range(1, 238):
        for name, share in zip("xyz", (0.6, 0.25, 0.15), strict=True):
            assert abs(sum(name in each for each in letters[:j]) - share * j) < 1


def test_a_short_text_comes_again_and_the_others_do_not(tmp_path, dense):
    long, short = _book(tmp_path / "long.txt", 900), _book(tmp_path / "short.txt", 20, "xyz", 1)
    text = pack(tmp_path / "t", f"{long}:0.5,{short}:0.5", dense, tokens=400 * LENGTH, held_out=40)
    assert text.parts[0].held_out == 20 and text.parts[0].training == 200
    assert len(text.parts[1].ids) < 100 and text.parts[1].held_out == len(text.parts[1].ids) // 4
    once, often = text.epochs(400 * LENGTH)
    assert once == 1 and often == 200 / text.parts[1].training > 2


def test_a_dataset_is_streamed_until_there_is_enough(tmp_path, dense, monkeypatch):
    datasets = pytest.importorskip("datasets")
    taken = []

    def rows(name, config, *, split, streaming):
        assert (name, config, split, streaming) == ("some/set", "small", "validation", True)
        for number in range(100_000):
            taken.append(number)
            yield {"body": f"Row {number} of the dataset."}

    monkeypatch.setattr(datasets, "load_dataset", rows)
    text = pack(tmp_path / "t", "some/set:small", dense, tokens=100 * LENGTH, field="body", split="validation")
    assert len(text.parts[0].ids) == 103 and len(taken) < 1000
    assert [text.describe()["parts"][0][name] for name in ("source", "field", "split")] == [
        "some/set:small",
        "body",
        "validation",
    ]


def test_describe_is_json_without_paths(tmp_path, dense, book):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"body": text}) for text in book.read_text().split("\n\n")))
    text = pack(tmp_path / "t", f"{rows}:0.75,builtin:0.25", dense, tokens=4000, field="body", seed=5)
    said = text.describe()
    assert said == json.loads(json.dumps(said))
    assert str(tmp_path) not in json.dumps(said) and str(tmp_path) not in (tmp_path / "t" / MANIFEST).read_text()
    assert said["source"] == "rows.jsonl:0.75,builtin:0.25"
    assert (said["seed"], said["length"], said["fingerprint"]) == (5, LENGTH, text.fingerprint)
    assert said["parts"][0]["field"] == "body" and "field" not in said["parts"][1]
    assert said["tokens"] == sum(part["tokens"] for part in said["parts"])
    assert said["held_out"] == 3


@pytest.mark.parametrize(("vocabulary", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_ids_take_two_bytes_where_the_vocabulary_allows(tmp_path, book, vocabulary, dtype, monkeypatch):
    config = tiny_config("llama", layers=1, vocab_size=vocabulary, hidden_size=8, intermediate_size=8)
    tiny_model("llama", config=config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    dense = DenseModel(resolve(str(tmp_path / "model")), device="cpu")
    largest = vocabulary - 1
    monkeypatch.setattr(
        "prunekit.data.tokenised.encode", lambda tokenizer, texts, special=False: [[largest] for _ in texts]
    )
    monkeypatch.setattr("prunekit.data.tokenised.separators", lambda tokenizer: ([], [3]))
    text = pack(tmp_path / "t", book, dense, tokens=64)
    assert text.batch(0, 2).ids.tolist() == [[largest, 3] * (LENGTH // 2)] * 2
    said = json.loads((tmp_path / "t" / MANIFEST).read_text())
    assert (said["dtype"], said["vocabulary"]) == (dtype, vocabulary)
    bytes_a_token = 2 if dtype == "uint16" else 4
    assert (tmp_path / "t" / "part-0.tokens").stat().st_size == text.parts[0].ids.size * bytes_a_token


def test_tokens_and_lengths_that_the_model_does_not_know_are_refused(tmp_path, dense, book):
    foreign = tiny_tokenizer(extra=tuple(f"<{number}>" for number in range(60)))
    with pytest.raises(PrunekitError, match=r"gives token 1\d\d, but the model knows only 128"):
        pack(tmp_path / "t", book, dense, tokenizer=foreign)
    with pytest.raises(PrunekitError, match="at most 256"):
        pack(tmp_path / "t", book, dense, length=257)
    assert list(tmp_path.iterdir()) == [book]


@pytest.mark.parametrize(
    ("written", "length", "message"),
    [
        ("x" * 30, 16, r"a\.txt holds 31 tokens, .* need 32; choose a length of at most 15, or give more text"),
        ("x", 16, r"a\.txt holds 2 tokens, .* need 32; give more text"),
        (" \n\n", 16, "is empty; give one that holds text"),
        ("", 16, "is empty"),
    ],
)
def test_a_text_that_is_too_short_is_refused(tmp_path, dense, written, length, message):
    path = tmp_path / "a.txt"
    path.write_text(written)
    with pytest.raises(PrunekitError, match=message):
        pack(tmp_path / "t", path, dense, length=length)
    assert list(tmp_path.iterdir()) == [path]


def test_two_windows_are_enough(tmp_path, dense):
    (tmp_path / "a.txt").write_text("x" * 31)
    text = pack(tmp_path / "t", tmp_path / "a.txt", dense)
    assert (text.parts[0].training, text.parts[0].held_out) == (1, 1)
    assert text.batch(0, 3).ids.tolist() == [text.batch(0, 1).ids[0].tolist()] * 3


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("{0}:0.5,{0}:0.5", "--text .* names a text twice"),
        ("{0}:0.5,builtin:0.6", "The shares in --text"),
        ("{0},builtin,no.txt,self", "4 training texts need at least 4 windows held out, got 3"),
    ],
)
def test_mixes_are_refused_as_the_option_is_called(tmp_path, dense, book, mix, message):
    with pytest.raises(PrunekitError, match=message):
        pack(tmp_path / "t", mix.format(book), dense)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 1}, "Length must be a whole number of at least 2, got 1"),
        ({"held_out": 0}, "Held out must be"),
        ({"seed": -1}, "Seed must be"),
        ({"source": ""}, "The training text's source must be named"),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(PrunekitError, match=message):
        TextConfig(**fields)


def test_a_name_that_is_taken_is_left_alone(tmp_path, dense, book):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").touch()
    with pytest.raises(PrunekitError, match="already exists"):
        pack(tmp_path / "t", book, dense)
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["mine"]
    text = pack(tmp_path / "u", book, dense)
    with pytest.raises(PrunekitError, match="count from 0"):
        text.batch(-1, 2)
    with pytest.raises(PrunekitError, match="at least 1 token, got 0"):
        pack(tmp_path / "v", book, dense, tokens=0)


def _said(folder: Path, **changes) -> None:
    said = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**said, **changes}))


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(bytes(data))


DAMAGE = {
    "a bit of the tokens": (lambda f: _flip(f / "part-0.tokens"), r"part-0\.tokens changed"),
    "a bit of the starts": (lambda f: _flip(f / "part-0.documents"), r"part-0\.documents changed"),
    "cut short": (lambda f: (f / "part-0.tokens").write_bytes(b"\0" * 64), r"part-0\.tokens changed"),
    "gone": (lambda f: (f / "part-0.documents").unlink(), r"part-0\.documents changed since .* or is missing"),
    "one more": (lambda f: (f / "notes").touch(), "holds notes"),
    "no text.json": (lambda f: (f / MANIFEST).unlink(), "does not exist"),
    "half a text.json": (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:99]), "not valid JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), "no training text that prunekit packed"),
    "another seed": (lambda f: _said(f, seed=1), "text.json is not what was written"),
    "another length": (lambda f: _said(f, length=8), "text.json is not what was written"),
    "no parts": (lambda f: _said(f, parts=None), "text.json is not what was written"),
    "later version": (lambda f: _said(f, version=2), "another version of prunekit"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_text_is_refused(tmp_path, dense, book, damage):
    pack(tmp_path / "t", book, dense)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path / "t")
    with pytest.raises(PrunekitError, match=message) as caught:
        open_text(tmp_path / "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("windows", 1),
        ("windows", -1),
        ("windows", 2.0),
        ("held_out", 0),
        ("held_out", 10**6),
        ("weight", 0),
        ("weight", 10**9),
        ("weight", "3"),
        ("documents", 0),
    ],
)
def test_a_text_that_lies_about_itself_is_refused(tmp_path, dense, book, name, value):
    """With a fingerprint that fits: a stranger's."""
    from prunekit.data import token_file

    pack(tmp_path / "t", book, dense)
    said = json.loads((tmp_path / "t" / MANIFEST).read_text())
    said["parts"][0][name] = value
    del said["fingerprint"]
    said["fingerprint"] = token_file._fingerprint(said)
    (tmp_path / "t" / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(PrunekitError, match="is damaged"):
        open_text(tmp_path / "t")


def test_a_run_that_is_stopped_leaves_nothing(tmp_path, dense, book, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("prunekit.data.token_file._described", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "t", book, dense)
    assert list(tmp_path.iterdir()) == [book]
