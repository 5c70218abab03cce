from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prunekit.data.calibration import CalibrationConfig, check_length, load_calibration, text_tokens
from prunekit.data.mixture import parse_mix
from prunekit.data.sources import builtin_documents, documents
from prunekit.errors import PrunekitError
from prunekit.plan.recipe import Recipe
from prunekit.plan.settings import EFFORTS
from tests.support.tiny_text import BOS, EOS, tiny_tokenizer, whole_text

TEXT = "First paragraph, on two\nlines.\n\n\n   \nSecond one.\r\n\r\nThird."


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    rng = random.Random(0)
    path.write_text("\n\n".join("".join(rng.choices("abcdefgh ", k=40)).strip() for _ in range(200)))
    return path


def calibrate(path: Path | str, tokenizer=None, **fields):
    config = CalibrationConfig(**{"source": str(path), "sequences": 4, "length": 16, **fields})
    return load_calibration(config, tokenizer or tiny_tokenizer())


def test_paragraphs_are_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    assert list(documents(str(path))) == ["First paragraph, on two\nlines.", "Second one.", "Third."]


def test_packing_joins_documents_with_eos_and_loses_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc\n\ndefg\n\nhi")
    tokenizer = tiny_tokenizer()
    made = calibrate(path, sequences=2, length=6)
    stream = made.blocks.flatten().tolist()
    assert stream == [*tokenizer.encode("abc"), EOS, *tokenizer.encode("defg"), EOS, *tokenizer.encode("hi"), EOS]
    assert sorted(made.input_ids.tolist()) == sorted(made.blocks.tolist())


def test_training_separator_is_preferred_to_a_chat_eos(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc\n\ndefg")
    tokenizer = tiny_tokenizer(extra=("<|endoftext|>",))
    stream = calibrate(path, tokenizer, sequences=1, length=9).blocks.flatten().tolist()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert stream.count(end) == 2
    assert EOS not in stream


def test_a_tokenizer_that_adds_bos_starts_documents_and_blocks_with_it(book):
    plain = calibrate(book, sequences=4)
    made = calibrate(book, tiny_tokenizer(bos=True))
    assert (made.input_ids[:, 0] == BOS).all()
    assert EOS not in made.blocks
    assert made.blocks[0].tolist() == [BOS, *plain.blocks[0, :-1].tolist()]


def test_same_seed_same_blocks_and_fingerprint(book):
    first, again, other = calibrate(book), calibrate(book), calibrate(book, seed=1)
    assert first.input_ids.shape == (4, 16)
    assert first.input_ids.dtype == torch.int64
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.fingerprint == again.fingerprint
    assert not torch.equal(first.input_ids, other.input_ids)
    assert first.fingerprint != other.fingerprint


def test_draw_is_spread_over_the_whole_text(book):
    made = calibrate(book, sequences=64)
    where = [made.blocks.tolist().index(row) for row in made.input_ids.tolist()]
    assert len(set(where)) == 64
    quarter = len(made.blocks) / 4
    assert {int(place // quarter) for place in where} == {0, 1, 2, 3}


def test_steps_use_up_the_text_before_repeating(book):
    made = calibrate(book, sequences=40)
    per_pass = len(made.blocks) // 40
    assert per_pass > 3
    draws = [made.step(t).input_ids for t in range(per_pass)]
    assert torch.equal(draws[0], made.input_ids)
    rows = [tuple(row) for draw in draws for row in draw.tolist()]
    assert len(set(rows)) == len(rows)
    assert not torch.equal(made.step(per_pass).input_ids, made.input_ids)
    assert torch.equal(made.step(2).input_ids, calibrate(book, sequences=40).step(2).input_ids)
    assert made.step(1).fingerprint != made.fingerprint


def test_step_of_a_text_that_just_fits_is_reshuffled(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(97 + index % 26) for index in range(79)))
    made = calibrate(path, sequences=8, length=10)
    assert len(made.blocks) == 8
    assert sorted(made.step(1).input_ids.tolist()) == sorted(made.input_ids.tolist())
    assert not torch.equal(made.step(1).input_ids, made.input_ids)


def test_describe_names_the_file_but_not_its_folder(book):
    made = calibrate(book)
    said = made.describe()
    assert said["source"] == "book.txt"
    assert str(book.parent) not in json.dumps(said)
    texts = book.read_text().split("\n\n")
    assert said["text_sha256"] == hashlib.sha256(b"".join(text.encode() + b"\0" for text in texts)).hexdigest()
    assert (said["sequences"], said["length"], said["seed"]) == (4, 16, 0)
    assert said["fingerprint"] == made.fingerprint


def test_gzip_and_jsonl_give_the_same_as_plain(tmp_path, book):
    texts = book.read_text().split("\n\n")
    packed = tmp_path / "book.txt.gz"
    packed.write_bytes(gzip.compress(book.read_bytes()))
    rows = tmp_path / "book.jsonl.gz"
    rows.write_bytes(gzip.compress("\n".join(json.dumps({"body": text}) for text in texts).encode()))
    expected = calibrate(book).input_ids
    assert torch.equal(calibrate(packed).input_ids, expected)
    assert torch.equal(calibrate(rows, field="body").input_ids, expected)
    assert whole_text(str(rows), field="body") == whole_text(str(book))


def test_builtin_is_prose_and_its_two_parts_share_no_paragraph():
    parts = {}
    for part in ("calibration", "evaluation"):
        texts = builtin_documents(part)
        assert texts == tuple(documents("builtin", part=part))
        joined = "\n\n".join(texts)
        assert ">>>" not in joined
        assert "****" not in joined
        assert "::=" not in joined
        parts[part] = {paragraph for text in texts for paragraph in text.split("\n\n")}
    assert not parts["calibration"] & parts["evaluation"]
    assert sum(map(len, parts["calibration"])) > 100_000
    assert sum(map(len, parts["evaluation"])) > 30_000
    assert calibrate("builtin", sequences=32, length=64).describe()["source"] == "builtin"


def test_too_short_says_what_there_is_and_what_would_fit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 99)
    with pytest.raises(
        PrunekitError, match=r"a\.txt holds 100 tokens, and 11 sequences of 10 need 110; ask for at most 10"
    ):
        calibrate(path, sequences=11, length=10)


def unreadable(tmp_path: Path) -> dict[str, tuple[str, bytes | None, str]]:
    return {
        "missing": ("no.txt", None, "does not exist"),
        "folder": ("", None, "is a folder"),
        "empty": ("e.txt", b" \n\n", "is empty"),
        "binary": ("b.txt", b"\x7fELF\0\0\1", "binary file"),
        "latin1": ("l.txt", "naïve café".encode("latin-1"), "not UTF-8"),
        "bad gzip": ("g.txt.gz", b"plain", "not a whole gzip"),
        "cut gzip": ("c.txt.gz", gzip.compress(b"some text" * 50)[:-9], "not a whole gzip"),
        "bad line": ("j.jsonl", b'{"text": "a"}\n\n{"text": \n', "Line 3 of .* not valid JSON"),
        "no object": ("o.jsonl", b'["a"]\n', "Line 1 of .* not a JSON object"),
        "no field": ("f.jsonl", b'{"body": "a", "id": 1}\n', "no field 'text'; it has body, id"),
        "no text": ("n.jsonl", b'{"text": 3}\n', "holds no text in 'text' but int"),
    }


@pytest.mark.parametrize("case", list(unreadable(Path())))
def test_what_cant_be_read_is_one_sentence(tmp_path, case):
    name, data, message = unreadable(tmp_path)[case]
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PrunekitError, match=message) as caught:
        calibrate(path)
    assert "\n" not in str(caught.value)


def test_dataset_is_streamed_until_there_is_enough(monkeypatch):
    datasets = pytest.importorskip("datasets")
    taken = []

    def rows(name, config, *, split, streaming):
        assert (name, config, split, streaming) == ("some/set", "small", "validation", True)
        for number in range(100_000):
            taken.append(number)
            yield {"body": f"Row {number} of the dataset."}

    monkeypatch.setattr(datasets, "load_dataset", rows)
    made = calibrate("some/set:small", field="body", split="validation")
    assert len(made.blocks) >= 4 * 4
    assert len(taken) < 1000
    assert made.describe()["source"] == "some/set:small"
    with pytest.raises(PrunekitError, match="no field 'text'; it has body"):
        calibrate("some/set:small", split="validation")


def test_dataset_out_of_reach_is_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub.\nLong story.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(PrunekitError, match=r"'no/set' is no file here, .*: Couldn't reach the Hub\. Check") as caught:
        calibrate("no/set")
    assert "\n" not in str(caught.value)


def test_wikitext_means_the_raw_test_split_joined_by_empty_lines(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def rows(name, config, *, split, streaming):
        assert (name, config, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
        return iter([{"text": ""}, {"text": " = Title = \n"}, {"text": " Body .\n"}])

    monkeypatch.setattr(datasets, "load_dataset", rows)
    tokenizer = tiny_tokenizer()
    expected = tokenizer.encode("\n\n = Title = \n\n\n Body .\n")
    assert text_tokens("wikitext", tokenizer).tolist() == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequences": 0}, "Sequences must be a whole number of at least 1, got 0"),
        ({"length": 1}, "Length must be"),
        ({"batch_size": True}, "Batch size must be"),
        ({"seed": -1}, "Seed must be"),
        ({"source": ""}, "source must be named"),
    ],
)
def test_config_is_validated(fields, message):
    with pytest.raises(PrunekitError, match=message):
        CalibrationConfig(**fields)


def test_length_beyond_the_models_positions_is_refused():
    model_config = SimpleNamespace(max_position_embeddings=64)
    check_length(CalibrationConfig(length=64), model_config)
    with pytest.raises(PrunekitError, match="at most 64"):
        check_length(CalibrationConfig(length=65), model_config)


@pytest.mark.parametrize("name", EFFORTS)
def test_no_effort_asks_for_more_than_comes_with_prunekit(name: str) -> None:
    """Of its 40,000 tokens a large vocabulary makes fewer."""
    recipe = Recipe.of(effort=name)
    shares = dict(parse_mix(recipe.calibration.source))
    assert shares["builtin"] * recipe.calibration.sequences * recipe.calibration.length <= 32768
