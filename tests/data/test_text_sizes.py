"""Text of any size and from anywhere: read in pieces that add up, within bounds, and refused in one sentence."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from prunekit.data import calibration, tokenised
from prunekit.data import rows as row_files
from prunekit.data import sources as text
from prunekit.data.calibration import CalibrationConfig, load_calibration, text_tokens
from prunekit.data.rows import read_rows
from prunekit.data.sources import documents, pieces, text_pieces
from prunekit.errors import PrunekitError
from prunekit.utils.files import text_stream
from prunekit.utils.files.text_stream import read_lines, read_pieces
from tests.support.tiny_text import BOS, tiny_tokenizer, whole_text

PARAGRAPHS = "First, on two\nlines.\n\n\n   \nSecond one.\r\n\r\nThird \r\rFourth.\n \n\n"


def calibrate(path: Path, tokenizer=None, **fields):
    config = CalibrationConfig(**{"source": str(path), "sequences": 2, "length": 8, **fields})
    return load_calibration(config, tokenizer or tiny_tokenizer())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_the_size_of_what_is_read_at_once_changes_nothing(tmp_path, monkeypatch, size):
    path = tmp_path / "a.txt"
    path.write_bytes(("é" + PARAGRAPHS).encode())
    expected = list(documents(str(path)))
    assert expected[:4] == ["éFirst, on two\nlines.", "Second one.", "Third ", "Fourth."]
    rows = tmp_path / "a.jsonl"
    rows.write_text("\n".join(json.dumps({"text": each}) for each in expected))
    monkeypatch.setattr(text_stream, "_PIECE", size)
    assert list(documents(str(path))) == expected
    assert whole_text(str(path)) == ("é" + PARAGRAPHS).replace("\r\n", "\n").replace("\r", "\n")
    assert "\n".join(read_lines(rows)) == rows.read_text()


@pytest.mark.parametrize("bos", [False, True])
def test_a_document_in_pieces_gives_the_tokens_of_the_whole(tmp_path, monkeypatch, bos):
    path = tmp_path / "a.txt"
    path.write_text("ab cd " * 40 + "\n\n" + "z" * 100 + "\n\nlast")
    whole, run = calibrate(path, tiny_tokenizer(bos=bos)), text_tokens(str(path), tiny_tokenizer(bos=bos))
    monkeypatch.setattr(text, "LONGEST_PIECE", 32)
    parts = list(pieces(str(path)))
    assert max(len(part.text) for part in parts) <= 32
    assert [part.ends for part in parts].count(True) == 3
    assert {part.text[0] for part in parts[:8]} <= {"a", " "}
    split = calibrate(path, tiny_tokenizer(bos=bos))
    assert torch.equal(split.blocks, whole.blocks)
    assert (split.text_sha256, split.fingerprint) == (whole.text_sha256, whole.fingerprint)
    assert torch.equal(text_tokens(str(path), tiny_tokenizer(bos=bos)), run)
    assert torch.equal(text_tokens(str(path), tiny_tokenizer(bos=bos), 50), run[:50])
    assert (run[0] == BOS) == bos
    assert "".join(text_pieces(str(path))) == path.read_text()


@pytest.mark.parametrize("kind", ["line.txt", "line.txt.gz", "rows.jsonl"])
def test_a_large_text_takes_little_memory_and_time(tmp_path, kind):
    """60 MB: the reader's own memory, apart from what tokenizers take for a piece."""
    path = tmp_path / kind
    block = b"the quick brown fox " * 50_000
    with gzip.open(path, "wb", compresslevel=1) if kind.endswith(".gz") else path.open("wb") as file:
        for _ in range(60):
            file.write(b'{"text": "%s"}\n' % block if kind == "rows.jsonl" else block)
    tracemalloc.start()
    try:
        count = sum(len(part.text) for part in pieces(str(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 60 * len(block)
    assert peak < 40 << 20


def test_of_a_long_text_only_so_much_is_used(tmp_path, monkeypatch, caplog):
    path = tmp_path / "a.txt"
    path.write_text("ab cd " * 2000)
    monkeypatch.setattr(calibration, "_CHARACTERS", 1000)
    monkeypatch.setattr(tokenised, "_CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(text, "LONGEST_PIECE", 128)
    made = calibrate(path)
    assert 1000 <= made.describe()["characters_read"] < 1300
    assert "is long" in caplog.text
    assert made.fingerprint == calibrate(path).fingerprint
    monkeypatch.setattr(calibration, "_MOST_TOKENS", 500)
    with pytest.raises(PrunekitError, match=r"more than 500 tokens.*--max-tokens"):
        text_tokens(str(path), tiny_tokenizer())
    assert len(text_tokens(str(path), tiny_tokenizer(), 600)) == 600


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"a" * (8 << 20)))
    monkeypatch.setattr(text_stream, "_GROWTH_BEYOND", 4 << 20)
    with pytest.raises(PrunekitError, match=r"grows to more than 100 times its size.*unpack it yourself"):
        whole_text(str(path))
    # Nothing of it is read that isn't needed, and the advice works.
    assert len(text_tokens(str(path), tiny_tokenizer(), 64)) == 64
    (tmp_path / "unpacked.txt").write_bytes(gzip.decompress(path.read_bytes()))
    assert len(whole_text(str(tmp_path / "unpacked.txt"))) == 8 << 20


def test_a_gzip_file_of_members_and_long_names_is_read_fast(tmp_path):
    path = tmp_path / "a.txt.gz"
    members = b"".join(gzip.compress(each.encode()) for each in ("Größe ", "", "and more"))
    path.write_bytes(members + bytes(2 << 20))
    assert whole_text(str(path)) == "Größe and more"
    for spoiled in (members[:-9], members + b"more"):
        path.write_bytes(spoiled)
        with pytest.raises(PrunekitError, match=r"is not a whole gzip file"):
            whole_text(str(path))
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"A" * (64 << 20))
    begin = time.process_time()
    with pytest.raises(PrunekitError, match=r"is not a whole gzip file \(it ends before its end marker\)"):
        whole_text(str(path))
    assert time.process_time() - begin < 5


def test_what_is_blank_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "blank.txt"
    path.write_text(" \n" * 4000)
    monkeypatch.setattr(text_stream, "_MOST_BLANK", 4000)
    with pytest.raises(PrunekitError, match=r"are blank"):
        list(pieces(str(path)))
    monkeypatch.setattr(text_stream, "_MOST_BLANK_LINES", 50)
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_text('{"text": "a"}\n' + "\n" * 60 + '{"text": "b"}\n')
        with pytest.raises(PrunekitError, match=r"51 blank lines before line 5"):
            list(read_rows(tmp_path / name))


def test_a_row_of_any_length_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_stream, "LONGEST_ROW", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 2000}))
    with pytest.raises(PrunekitError, match=r"Line 2 of .* longer than 1,000 characters; write one document a line"):
        list(read_rows(path))


def test_a_csv_row_of_many_lines_or_columns_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "LONGEST_ROW", 1000)
    path = tmp_path / "a.csv"
    path.write_text("text,b\nshort,1\n" + '"aaa\n",' * 1000)
    with pytest.raises(PrunekitError, match=r"A row of .* is longer than 1,000 characters; a quotation mark may be"):
        list(read_rows(path))
    path.write_text("text,b\n" + "short,1\n" * 1000)
    assert len(list(read_rows(path))) == 1000
    monkeypatch.setattr(row_files, "LONGEST_ROW", 1 << 24)
    path.write_text("," * 20000 + "\nshort\n")
    with pytest.raises(PrunekitError, match=r"20,001 columns, and at most 16,384 are read"):
        list(read_rows(path))


def test_a_parquet_file_that_says_one_text_in_every_row_is_read_row_by_row(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "bomb.parquet"
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 400, pyarrow.int32()), ["x y" * 2_000_000])
    parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", dictionary_pagesize_limit=1 << 25)
    before = pyarrow.default_memory_pool().max_memory()
    assert len(next(read_rows(path))[1]["text"]) == 6_000_000
    assert pyarrow.default_memory_pool().max_memory() - before < 100 << 20
    monkeypatch.setattr(text_stream, "_GROWTH_BEYOND", 4 << 20)
    with pytest.raises(PrunekitError, match=r"grows to more than 100 times its size"):
        next(read_rows(path))
    monkeypatch.setattr(text_stream, "_GROWTH_BEYOND", 1 << 26)
    monkeypatch.setattr(row_files, "_MOST_ROW_BYTES", 1 << 20)
    with pytest.raises(PrunekitError, match=r"Row 1 of .* has 6,000,00\d bytes; split its text"):
        next(read_rows(path))


def test_a_pipe_that_nobody_writes_to_ends_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(text_stream, "_PATIENCE", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(PrunekitError, match=r"pipe, and nothing was written to it for 0.2 seconds"):
        list(read_pieces(path))


def test_a_pipe_that_is_written_to_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text("ab cd\n\nef"))
    writer.start()
    assert list(documents(str(path))) == ["ab cd", "ef"]
    writer.join()


def test_an_endless_pipe_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(text_stream, "_MOST_FROM_A_PIPE", 1 << 20)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(
        [sys.executable, "-c", f"f = open({str(path)!r}, 'w')\nwhile True: f.write('abc ' * 4096)"]
    ) as yes:
        with pytest.raises(PrunekitError, match=r"pipe that gave more than"):
            for _ in read_pieces(path):
                pass
        yes.kill()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/random", "/proc/self/mem", "/dev/null"])
def test_devices_are_refused_at_once(path):
    if not Path(path).exists():
        pytest.skip("not on this system")
    with pytest.raises(PrunekitError) as caught:
        list(read_pieces(Path(path)))
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_that_grows_is_read_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(text_stream, "_PIECE", 4)
    path = tmp_path / "log.txt"
    path.write_text("abcdefgh" * 10)
    read = []
    for piece in read_pieces(path):
        read.append(piece)
        with path.open("a") as file:
            file.write("more" * 10)
    assert "".join(read) == "abcdefgh" * 10


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with its mark"])
def test_encodings_with_a_mark(tmp_path, encoding):
    path = tmp_path / "a.txt"
    said = "naïve 東京 🙂\r\n\r\nzwei"
    path.write_bytes(b"\xff\xfe" + said.encode("utf-16-le") if "with" in encoding else said.encode(encoding))
    assert list(documents(str(path))) == ["naïve 東京 🙂", "zwei"]
    path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
    assert list(documents(str(path.with_suffix(".gz")))) == ["naïve 東京 🙂", "zwei"]


@pytest.mark.parametrize("size", [4, 5, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"0123456789 caf\xe9 and more", "UTF-8 text .byte 14 "),
        ("東京".encode()[:-1], "UTF-8 text .byte 3 "),
        ("ab".encode("utf-16") + b"\x00\xd8a\x00", "UTF-16 text .byte 6 "),
    ],
)
def test_the_byte_that_does_not_fit_is_named(tmp_path, monkeypatch, size, data, message):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    monkeypatch.setattr(text_stream, "_PIECE", size)
    with pytest.raises(PrunekitError, match=message):
        list(read_pieces(path))


def test_utf16_without_a_mark_gets_advice(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("some text".encode("utf-16-le"))
    with pytest.raises(PrunekitError, match=r"iconv -f UTF-16LE -t UTF-8"):
        list(read_pieces(path))


def test_zstd(tmp_path):
    path = tmp_path / "a.txt.zst"
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.compress(b"ab cd\n\nef"))
    assert list(documents(str(path))) == ["ab cd", "ef"]
    path.write_bytes(zstandard.compress(os.urandom(99))[:-9])
    with pytest.raises(PrunekitError, match=r"zstd|empty|binary|UTF-8"):
        list(documents(str(path)))


def test_zstd_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(PrunekitError, match=r"pip install zstandard"):
        list(documents(str(path)))


def test_standard_input_is_bounded(monkeypatch):
    from types import SimpleNamespace

    from prunekit.cli.commands.generate import _LONGEST_PROMPT, _standard_input

    given = SimpleNamespace(buffer=io.BytesIO(b"a" * (_LONGEST_PROMPT + 9)), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", given)
    with pytest.raises(PrunekitError, match=r"shorten it"):
        _standard_input()


def test_random_texts_split_as_a_whole_text_does(tmp_path, monkeypatch):
    import re

    rng = random.Random(0)
    path = tmp_path / "a.txt"
    for _ in range(60):
        said = "".join(rng.choices("ab \n\t\r", k=200)) + "x"
        path.write_text(said, newline="")
        expected = re.split(r"\n\s*\n", said.replace("\r\n", "\n").replace("\r", "\n"))
        monkeypatch.setattr(text_stream, "_PIECE", rng.randint(1, 40))
        assert list(documents(str(path))) == expected
