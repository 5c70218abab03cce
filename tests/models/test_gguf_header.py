"""Counts and lengths in a GGUF file's tables: held against the file before anything follows them."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit.errors import PrunekitError
from prunekit.models.gguf.header import read_header
from prunekit.models.source import resolve
from tests.support.tiny_gguf import write_tiny_gguf

HUGE = (1 << 60, 1 << 63, (1 << 64) - 1, 1 << 32)
STRING, ARRAY, UINT8, UINT32 = 8, 9, 0, 4


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _file(keys: bytes = b"", tensors: bytes = b"", count: int = 0, key_count: int = 0, body: int = 64) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, count, key_count) + keys + tensors
    return head + b"\0" * (-len(head) % 32) + b"\0" * body


def _tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, axes: int | None = None) -> bytes:
    numbers = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        _text(name)
        + struct.pack("<I", len(shape) if axes is None else axes)
        + numbers
        + struct.pack("<IQ", kind, offset)
    )


def _key(kind: int, value: bytes, name: bytes = b"a.b") -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQB", UINT8, 1, 7)


CASES: dict[str, Callable[[int], bytes]] = {
    "tensors": lambda huge: _file(count=huge),
    "keys": lambda huge: _file(key_count=huge),
    "length of a name": lambda huge: _file(struct.pack("<Q", huge) + b"ab", key_count=1),
    "length of a text": lambda huge: _file(_key(STRING, struct.pack("<Q", huge) + b"ab"), key_count=1),
    "list of bytes": lambda huge: _file(_key(ARRAY, struct.pack("<IQ", UINT8, huge)), key_count=1),
    "list of numbers": lambda huge: _file(_key(ARRAY, struct.pack("<IQ", UINT32, huge)), key_count=1),
    "list of texts": lambda huge: _file(_key(ARRAY, struct.pack("<IQ", STRING, huge)), key_count=1),
    "list of lists": lambda huge: _file(_key(ARRAY, struct.pack("<IQ", ARRAY, huge)), key_count=1),
    "axes": lambda huge: _file(tensors=_tensor(b"t", (4,), axes=huge & 0xFFFFFFFF or 77), count=1),
    "width": lambda huge: _file(tensors=_tensor(b"t", (huge,)), count=1),
    "product of widths": lambda huge: _file(tensors=_tensor(b"t", (huge, huge, huge, huge)), count=1),
    "offset": lambda huge: _file(tensors=_tensor(b"t", (4,), offset=huge), count=1),
    "alignment": lambda huge: _file(_key(10, struct.pack("<Q", huge), b"general.alignment"), key_count=1),
}


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("case", CASES)
def test_huge_numbers(case: str, huge: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "t.gguf"
    file.write_bytes(CASES[case](huge))
    start = time.process_time()
    with pytest.raises(PrunekitError, match=r"t\.gguf can't be read as a GGUF model.*download it again"):
        resolve(str(file))
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (_file(_key(ARRAY, _nested(500)), key_count=1), "too deep"),
        (_file(_key(13, b"1234"), key_count=1), "unknown type 13"),
        (_file(_key(UINT8, b"1") * 2, key_count=2), "twice"),
        (_file(_key(STRING, _text(b"x"), b"general.alignment"), key_count=1), "aligns"),
        (_file(_key(UINT32, struct.pack("<I", 0), b"general.alignment"), key_count=1), "aligns"),
        (_file(tensors=_tensor(b"t", (4,), kind=99), count=1), "99"),
        (_file(tensors=_tensor(b"t", (0, 4)), count=1), "shape"),
        (_file(tensors=_tensor(b"t", (4,)) * 2, count=2), "there twice"),
        (_file(tensors=b"".join(_tensor(b"t%d" % i, (64,)) for i in range(9)), count=9, body=256), "overlap"),
    ],
)
def test_tables_that_make_no_sense(data: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "t.gguf").write_bytes(data)
    with pytest.raises(PrunekitError, match=part):
        read_header(tmp_path / "t.gguf")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    header = read_header(write_tiny_gguf(tmp_path / "t.gguf"))
    assert header.architecture == "llama" and header.field("block_count") == 2
    assert header.fields["tokenizer.ggml.tokens"][:3] == ["w", "1", "w1"]
    assert header.tensors["blk.1.ffn_down.weight"].shape == (32, 48)
    assert header.data("output_norm.weight").shape == (1, 128)
